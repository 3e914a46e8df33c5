"""What is promised before submitting: every figure from pooled out-of-fold scores."""

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from defects.errors import UserError
from defects.scoring import thresholds


def rank_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """AUROC and average precision of raw scores; None where only one class is present."""
    if len(np.unique(labels)) < 2:
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(labels, scores, sample_weight=weights)),
        "average_precision": float(average_precision_score(labels, scores, sample_weight=weights)),
    }


def estimate(oof: pd.DataFrame, rule: str = "macro_f1", fpr: float = 0.05) -> dict:
    """Threshold and expected macro-F1 from `oof` (label, score, fold, group), plain values only.

    Scores are log-odds; `threshold` is `score_threshold` as a probability, found by `rule` (see
    thresholds.choose_threshold). `nested_macro_f1` and its interval are the promise: thresholds fitted
    on the other folds, None for a single fold. Without defects no macro-F1 can be promised: these are
    all None, and `nested_false_rejection` is what is left. Raises UserError for scores that are not finite.
    """
    labels, scores = oof["label"].to_numpy(dtype=int), oof["score"].to_numpy(dtype=float)
    if not np.isfinite(scores).all():
        raise UserError(f"{int((~np.isfinite(scores)).sum())} out-of-fold scores are not finite: train again")
    threshold = thresholds.choose_threshold(labels, scores, rule, fpr)
    nested = thresholds.nested_predictions(labels, scores, oof["fold"].to_numpy(), rule, fpr)
    predicted = (scores >= threshold).astype(int)
    return {
        "threshold": float(expit(threshold)),
        "score_threshold": threshold,
        "rule": rule if labels.any() else "expected_fpr",
        "images": len(oof),
        "defects": int(labels.sum()),
        "folds": sorted(oof["fold"].unique().tolist()),
        **_f1_figures(labels, scores, predicted, nested, oof["group"].to_numpy()),
        "false_acceptance": _share(predicted[labels == 1] == 0),
        "false_rejection": _share(predicted[labels == 0]),
        "nested_false_rejection": None if nested is None else _share(nested[labels == 0]),
        "equal_error_rate": thresholds.equal_error(labels, scores)[1] if np.ptp(labels) else None,
        **rank_metrics(labels, scores),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
    }


def _f1_figures(
    labels: np.ndarray,
    scores: np.ndarray,
    predicted: np.ndarray,
    nested: np.ndarray | None,
    groups: np.ndarray,
) -> dict:
    found = dict.fromkeys(["macro_f1", "macro_f1_at_half", "nested_macro_f1", "interval_90"])
    if labels.any():
        found["macro_f1"] = thresholds.macro_f1(labels, predicted)
        found["macro_f1_at_half"] = thresholds.macro_f1(labels, scores >= 0)
        if nested is not None:
            found["nested_macro_f1"] = thresholds.macro_f1(labels, nested)
            found["interval_90"] = thresholds.bootstrap_interval(labels, nested, groups)
    return found


def _share(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if len(chosen) else None
