"""What is expected before submitting: every figure from pooled out-of-fold scores."""

import json

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import confusion_matrix

from defects.config_schema import Config, ThresholdConfig
from defects.data.fold_files import DataTables
from defects.data.labels import DEFECT
from defects.evaluation import thresholds
from defects.evaluation.metrics import interval, macro_f1, rank_metrics
from defects.evaluation.scales import align_oof
from defects.messages import UserError
from defects.runs import Run
from defects.stamps import settings_but

# Names and places, seeds, and what changes no result.
NOT_THE_MODEL = {
    "experiment",
    "output",
    "submissions",
    "data.root",
    "data.answers",
    "data.pixel_size_mm",
    "split.seed",
    "train.seed",
    "train.workers",
    "infer.batch_size",
    "infer.shard",
    "ensemble",
    "claims",
    "tracking",
}


def estimate(
    oof: pd.DataFrame, settings: ThresholdConfig = thresholds.DEFAULTS, nested: np.ndarray | None = None
) -> dict:
    """Threshold and expected macro-F1 from `oof` (label, score, fold, group), plain values only.

    Scores are log-odds; `threshold` is `score_threshold` as a probability, chosen by `settings` (see
    thresholds.choose_threshold). `nested_macro_f1` and its interval are the estimate: thresholds fitted
    on the other folds, None for a single fold; of several experiments `nested` 0/1 [N] is predicted by all
    that was fitted on the other folds. `fold_macro_f1` is the same for each fold, and
    `optimism` what the nested estimate takes off. Without defects no macro-F1 can be expected: these are
    all None, and `nested_false_rejection` is what is left. Raises UserError for scores that are not finite.
    """
    labels = oof["label"].to_numpy(dtype=int)
    scores = oof["score"].to_numpy(dtype=float)
    if not np.isfinite(scores).all():
        raise UserError(f"{int((~np.isfinite(scores)).sum())} out-of-fold scores are not finite: train again")
    threshold = thresholds.choose_threshold(labels, scores, settings)
    if nested is None:
        nested = thresholds.nested_predictions(labels, scores, oof["fold"].to_numpy(), settings)
    predicted = (scores >= threshold).astype(int)
    return {
        "threshold": float(expit(threshold)),
        "score_threshold": threshold,
        "rule": settings.rule if labels.any() else "expected_fpr",
        "fpr": settings.fpr,
        "costs": None if settings.costs is None else settings.costs.model_dump(),
        "images": len(oof),
        "defects": int(labels.sum()),
        "folds": sorted(oof["fold"].unique().tolist()),
        **_f1_figures(oof, predicted, nested),
        "false_acceptance": _share(predicted[labels == 1] == 0),
        "false_rejection": _share(predicted[labels == 0]),
        "nested_false_rejection": None if nested is None else _share(nested[labels == 0]),
        "equal_error_rate": thresholds.equal_error(labels, scores)[1] if np.ptp(labels) else None,
        **rank_metrics(labels, scores),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
    }


def _f1_figures(oof: pd.DataFrame, predicted: np.ndarray, nested: np.ndarray | None) -> dict:
    labels = oof["label"].to_numpy(dtype=int)
    names = ["macro_f1", "macro_f1_at_half", "nested_macro_f1", "interval_90", "optimism", "fold_macro_f1"]
    figures = dict.fromkeys(names)
    if labels.any():
        figures["macro_f1"] = macro_f1(labels, predicted)
        figures["macro_f1_at_half"] = macro_f1(labels, oof["score"] >= 0)
        if nested is not None:
            figures["nested_macro_f1"] = macro_f1(labels, nested)
            figures["interval_90"] = interval(labels, nested, oof["group"].to_numpy())
            figures["optimism"] = figures["macro_f1"] - figures["nested_macro_f1"]
            folds = pd.Series(range(len(oof))).groupby(oof["fold"].to_numpy()).indices
            figures["fold_macro_f1"] = {
                fold: macro_f1(labels[rows], nested[rows]) for fold, rows in folds.items()
            }
    return figures


def _share(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def without_seeds(config: Config) -> str:
    """Equal for configurations that differ in their seeds, names and folders alone."""
    return json.dumps(settings_but(config, NOT_THE_MODEL), sort_keys=True)


def aligned_oof(run: Run, tables: DataTables) -> pd.DataFrame:
    """Out-of-fold rows joined with images.csv and groups, whatever seed their folds were drawn with.

    `raw` is the score of the model that did not learn from the image, `score` its log-odds on the scale
    common to all folds. Raises UserError when images or labels are not those of the present images.csv.
    """
    rows = run.read_oof()
    oof = rows[rows["target"] == DEFECT].reset_index(drop=True)
    images = tables.images.rename(columns={"label": "current_label"})
    joined = oof.merge(tables.folds[["image_id", "group"]], on="image_id", how="left")
    joined = joined.merge(images, on="image_id", how="left").rename(columns={"score": "raw"})
    wrong = (joined["label"] != joined["current_label"]).fillna(True) | joined["image_id"].duplicated()
    if wrong.any():
        raise UserError(
            f"{run.folder}: its out-of-fold images are not those of {run.config.dataset_dir / 'images.csv'} "
            f"({wrong.sum()} differ, {joined.loc[wrong, 'image_id'].iloc[0]} first): use train.py --restart"
        )
    return joined.assign(score=align_oof(oof)[0])
