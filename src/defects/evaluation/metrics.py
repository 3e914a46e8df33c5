"""Metrics of images: macro-F1, AUROC, average precision."""

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score


def macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean F1 of the two classes; a class that neither occurs nor is predicted counts 0."""
    return float(
        f1_score(labels, predicted, labels=[0, 1], average="macro", sample_weight=weights, zero_division=0)
    )


def macro_f1_of_counts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    errors = fp + fn
    smallest = np.finfo(float).tiny  # a class that neither occurs nor is predicted counts 0
    f1_defect = 2 * tp / np.maximum(2 * tp + errors, smallest)
    f1_normal = 2 * tn / np.maximum(2 * tn + errors, smallest)
    return (f1_defect + f1_normal) / 2


def share_weights(labels: np.ndarray, share: float) -> np.ndarray:
    """Weights [N] of mean 1 that give the defective images the stated share of the total."""
    found = labels.mean()
    if found in (0.0, 1.0):
        return np.ones(len(labels))
    return np.where(labels == 1, share / found, (1 - share) / (1 - found))


def rank_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """AUROC and average precision of raw scores; None where only one class is present."""
    if len(np.unique(labels)) < 2:
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(labels, scores, sample_weight=weights)),
        "average_precision": float(average_precision_score(labels, scores, sample_weight=weights)),
    }
