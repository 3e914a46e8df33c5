"""Decision thresholds by two rules, the nested estimate of a rule, and bootstrap draws.

An image is called defective when its score reaches the threshold (score >= threshold).
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import f1_score

TINY = 1e-12  # in place of a denominator of 0


class Cuts(NamedTuple):
    """All ways to cut a list of scores, lowest threshold first; the last calls nothing defective.

    threshold and gap (the distance between the two scores it lies between) [K]; errors as counts [K]:
    fp normal images called defective, fn defects passed; `normal` and `defects` are the totals.
    """

    threshold: np.ndarray
    gap: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    normal: float
    defects: float


def macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean F1 of the two classes; a class that neither occurs nor is predicted counts 0."""
    return float(
        f1_score(labels, predicted, labels=[0, 1], average="macro", sample_weight=weights, zero_division=0)
    )


def share_weights(labels: np.ndarray, share: float) -> np.ndarray:
    """Weights [N] of mean 1 that give the defective images the stated share of the total."""
    found = labels.mean()
    if found in (0.0, 1.0):
        return np.ones(len(labels))
    return np.where(labels == 1, share / found, (1 - share) / (1 - found))


def choose_threshold(
    labels: np.ndarray,
    scores: np.ndarray,
    rule: str = "macro_f1",
    fpr: float = 0.05,
    share: float | None = None,
) -> float:
    """The threshold by `threshold.rule`: macro_f1 or expected_fpr.

    macro_f1 is that of images weighted to a `share` of defects, by default their own; expected_fpr does not
    depend on it. Where only one class is there, no rule can weigh both: without defects it is expected_fpr,
    without normal images everything is called defective.
    """
    if not (labels == 0).any():
        return float(scores.min())
    if rule == "expected_fpr" or not (labels == 1).any():
        return fpr_threshold(scores[labels == 0], fpr)
    return best_threshold(labels, scores, share)[0]


def best_threshold(labels: np.ndarray, scores: np.ndarray, share: float | None = None) -> tuple[float, float]:
    """The threshold with the highest macro-F1 on these scores, and that macro-F1.

    With `share` the images are weighted so that defects have this share of the total (both classes needed).
    Every cut between distinct scores is tried, by one sort. Among equal optima the one in the widest
    gap is taken: it is the least likely to be crossed by a new score.
    """
    cuts = all_cuts(labels, scores)
    fp, fn, tp, tn = cuts.fp, cuts.fn, cuts.defects - cuts.fn, cuts.normal - cuts.fp
    if share is not None:
        defect, normal = share / cuts.defects, (1 - share) / cuts.normal
        fp, fn, tp, tn = normal * fp, defect * fn, defect * tp, normal * tn
    value = macro_f1_of_counts(tp, fp, fn, tn)
    best = np.lexsort((-cuts.gap, -value))[0]
    return float(cuts.threshold[best]), float(value[best])


def equal_error(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold at which false acceptance equals false rejection, and that rate.

    False acceptance is the share of the defects that pass, false rejection the share of the normal images
    that do not. Where no cut makes them equal, the one that brings them nearest is taken (of several the
    one with fewer errors, then the widest gap), and the rate is their mean. Needs both classes.
    """
    cuts = all_cuts(labels, scores)
    # Over the common denominator: rates of equal distance would differ by rounding.
    accepted, rejected = cuts.fn * cuts.normal, cuts.fp * cuts.defects
    best = np.lexsort((-cuts.gap, accepted + rejected, abs(accepted - rejected)))[0]
    rate = (accepted[best] + rejected[best]) / (2 * cuts.normal * cuts.defects)
    return float(cuts.threshold[best]), float(rate)


def fpr_threshold(normal_scores: np.ndarray, fpr: float) -> float:
    """The lowest threshold that at most a share `fpr` of these normal images reaches: an exact quantile."""
    ordered = np.sort(normal_scores)
    above = len(ordered) - np.searchsorted(ordered, ordered, side="right")
    return float(np.nextafter(ordered[above / len(ordered) <= fpr][0], np.inf))


def all_cuts(labels: np.ndarray, scores: np.ndarray) -> Cuts:
    """Every distinct way to cut `scores` [N]; thresholds lie in the middle between two of them."""
    distinct, position = np.unique(scores, return_inverse=True)
    defects = np.bincount(position, weights=labels == 1, minlength=len(distinct))
    normal = np.bincount(position, weights=labels == 0, minlength=len(distinct))
    return Cuts(
        threshold=np.concatenate([distinct[:1], between(distinct), [np.nextafter(distinct[-1], np.inf)]]),
        gap=np.concatenate([[0.0], np.diff(distinct), [0.0]]),
        fp=np.append(normal[::-1].cumsum()[::-1], 0),
        fn=np.append(0, defects.cumsum()),
        normal=normal.sum(),
        defects=defects.sum(),
    )


def nested_predictions(
    labels: np.ndarray, scores: np.ndarray, folds: np.ndarray, rule: str = "macro_f1", fpr: float = 0.05
) -> np.ndarray | None:
    """0/1 [N], each fold called by the threshold fitted on all others; None for a single fold."""
    names = np.unique(folds)
    if len(names) < 2:
        return None
    predicted = np.zeros(len(labels), dtype=int)
    for name in names:
        held = folds == name
        predicted[held] = scores[held] >= choose_threshold(labels[~held], scores[~held], rule, fpr)
    return predicted


def bootstrap(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int = 0, repeats: int = 5000
) -> np.ndarray:
    """macro-F1 [repeats, K] of K predictions 0/1 [K, N] on the same draws of whole groups."""
    outcome = 2 * np.asarray(labels, dtype=int) + predicted.astype(int)  # tn, fp, fn, tp
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max() + 1, len(predicted), 4))
    for index, each in enumerate(outcome):
        np.add.at(counts, (group, index, each), 1)
    # Groups with equal counts are interchangeable: draw how often each kind of group occurs.
    kinds, multiplicity = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), multiplicity / len(counts), repeats)
    tn, fp, fn, tp = np.moveaxis(np.tensordot(draws, kinds, axes=1), 2, 0)
    return macro_f1_of_counts(tp, fp, fn, tn)


def between(distinct: np.ndarray) -> np.ndarray:
    """Cuts [K - 1] between ascending values [K]: reaching a cut is being one of those above it."""
    middle = distinct[:-1] / 2 + distinct[1:] / 2
    # Between neighbouring floats there is no middle: reaching the upper one is the cut.
    return np.where(middle > distinct[:-1], middle, distinct[1:])


def macro_f1_of_counts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    errors = fp + fn
    smallest = np.finfo(float).tiny  # a class that neither occurs nor is predicted counts 0
    f1_defect = 2 * tp / np.maximum(2 * tp + errors, smallest)
    f1_normal = 2 * tn / np.maximum(2 * tn + errors, smallest)
    return (f1_defect + f1_normal) / 2
