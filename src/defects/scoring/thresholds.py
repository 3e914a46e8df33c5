"""Thresholds for macro-F1: the exact optimum, its nested estimate, a bootstrap interval.

An image is called defective when its score reaches the threshold (score >= threshold).
"""

import numpy as np
from sklearn.metrics import f1_score


def macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean F1 of the two classes; a class that neither occurs nor is predicted counts 0."""
    return float(
        f1_score(labels, predicted, labels=[0, 1], average="macro", sample_weight=weights, zero_division=0)
    )


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest macro-F1 on these scores, and that macro-F1.

    Every cut between distinct scores is tried, by one sort. Among equal optima the one in the widest
    gap is taken: it is the least likely to be crossed by a new score.
    """
    distinct, position = np.unique(scores, return_inverse=True)
    positive = np.bincount(position, weights=labels == 1, minlength=len(distinct))
    negative = np.bincount(position, weights=labels == 0, minlength=len(distinct))
    # Cut i calls distinct[i:] defective; the last cut calls nothing defective.
    tp = np.append(positive[::-1].cumsum()[::-1], 0)
    fp = np.append(negative[::-1].cumsum()[::-1], 0)
    value = _macro_f1_of_counts(tp, fp, positive.sum() - tp, negative.sum() - fp)
    cuts = np.concatenate([distinct[:1], _between(distinct), [np.nextafter(distinct[-1], np.inf)]])
    gaps = np.concatenate([[0.0], np.diff(distinct), [0.0]])
    best = np.lexsort((-gaps, -value))[0]
    return float(cuts[best]), float(value[best])


def nested_predictions(labels: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> np.ndarray | None:
    """0/1 [N], each fold called by the threshold fitted on all others; None for a single fold."""
    names = np.unique(folds)
    if len(names) < 2:
        return None
    predicted = np.zeros(len(labels), dtype=int)
    for name in names:
        held = folds == name
        predicted[held] = scores[held] >= best_threshold(labels[~held], scores[~held])[0]
    return predicted


def bootstrap_interval(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int = 0, repeats: int = 5000
) -> tuple[float, float]:
    """90 % interval of macro-F1 when whole groups (photographs of one object) are drawn anew."""
    outcome = 2 * np.asarray(labels, dtype=int) + np.asarray(predicted, dtype=int)  # tn, fp, fn, tp
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max() + 1, 4))
    np.add.at(counts, (group, outcome), 1)
    # Groups with equal counts are interchangeable: draw how often each kind of group occurs.
    kinds, multiplicity = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), multiplicity / len(counts), repeats)
    tn, fp, fn, tp = (draws @ kinds).T
    low, high = np.quantile(_macro_f1_of_counts(tp, fp, fn, tn), [0.05, 0.95])
    return float(low), float(high)


def _between(distinct: np.ndarray) -> np.ndarray:
    middle = distinct[:-1] / 2 + distinct[1:] / 2
    # Between neighbouring floats there is no middle: reaching the upper one is the cut.
    return np.where(middle > distinct[:-1], middle, distinct[1:])


def _macro_f1_of_counts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    errors = fp + fn
    f1_defect = 2 * tp / np.maximum(2 * tp + errors, 1)
    f1_normal = 2 * tn / np.maximum(2 * tn + errors, 1)
    return (f1_defect + f1_normal) / 2
