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


def estimate(oof: pd.DataFrame) -> dict:
    """Threshold and expected macro-F1 from `oof` (label, score, fold, group), plain values only.

    Scores are log-odds; `threshold` is `score_threshold` as a probability. `nested_macro_f1` and its
    interval are the promise: thresholds fitted on the other folds, None for a single fold. Raises
    UserError for scores that are not finite.
    """
    labels, scores = oof["label"].to_numpy(dtype=int), oof["score"].to_numpy(dtype=float)
    if not np.isfinite(scores).all():
        raise UserError(f"{int((~np.isfinite(scores)).sum())} out-of-fold scores are not finite: train again")
    threshold, fitted = thresholds.best_threshold(labels, scores)
    nested = thresholds.nested_predictions(labels, scores, oof["fold"].to_numpy())
    predicted = (scores >= threshold).astype(int)
    groups = oof["group"].to_numpy()
    return {
        "threshold": float(expit(threshold)),
        "score_threshold": threshold,
        "images": len(oof),
        "defects": int(labels.sum()),
        "folds": sorted(oof["fold"].unique().tolist()),
        "macro_f1": fitted,
        "macro_f1_at_half": thresholds.macro_f1(labels, scores >= 0),
        "nested_macro_f1": None if nested is None else thresholds.macro_f1(labels, nested),
        "interval_90": None if nested is None else thresholds.bootstrap_interval(labels, nested, groups),
        **rank_metrics(labels, scores),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
    }
