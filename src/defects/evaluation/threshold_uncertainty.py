"""How much less out-of-fold images are worth, for bounds of error rates, because they chose the threshold.

Nested predictions are made by several thresholds, and the one in use is yet another, chosen from all images.
Its rates of error differ from those of nested predictions by more than the binomial draw of images: near the
optimum of macro-F1 the threshold is vague. Bounds that leave this out hold in 90 % of cases in place of 95 %
(benchmarks/claims_coverage.py).
"""

from typing import NamedTuple

import numpy as np

from defects.config_schema import ThresholdConfig
from defects.evaluation.metrics import JEFFREYS_PRIOR, effective_number
from defects.evaluation.thresholds import choose_threshold, nested_predictions

HALVINGS = 30  # of the groups; either half is used


class Inflation(NamedTuple):
    """The variance of the difference between estimated and true rates, over that of a binomial draw."""

    escape: float = 1.0
    false_alarm: float = 1.0


NO_INFLATION = Inflation()


def measure_inflation(
    labels: np.ndarray,
    scores: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray,
    settings: ThresholdConfig,
    share: float | None = None,
    seed: int = 0,
) -> Inflation:
    """From labels 0/1, scores (log-odds), folds and groups [N] of out-of-fold images.

    All groups are divided at random into halves, those with defects and the others by themselves. One half
    estimates its rates by nested thresholds, and the other tells the rates of the threshold of the first. The
    variance of the difference has twice the binomial part of a half, since both halves are draws of images,
    and once the part of the thresholds. At least 1; also 1 where a half is too small for its folds.
    """
    random = np.random.default_rng(seed)
    _, group_of_image = np.unique(groups, return_inverse=True)
    has_defects = np.bincount(group_of_image, weights=labels) > 0
    differences = []
    for _ in range(HALVINGS):
        is_chosen = choose_half(has_defects, random)[group_of_image]
        for half in (is_chosen, ~is_chosen):
            difference = compare_halves(labels, scores, folds, half, settings, share)
            if difference is not None:
                differences.append(difference)
    if not differences:
        return NO_INFLATION
    values = []
    for name, label in (("escape", 1), ("false_alarm", 0)):
        is_class = labels == label
        nested_rates = np.array([getattr(rates, name) for rates, _ in differences])
        squares = np.array([(getattr(rates, name) - getattr(true, name)) ** 2 for rates, true in differences])
        images = effective_number(groups[is_class])
        rate = (nested_rates.mean() * images + JEFFREYS_PRIOR) / (images + 2 * JEFFREYS_PRIOR)
        binomial = rate * (1 - rate) / (images / 2)
        values.append(max(1.0, float(squares.mean() / binomial) - 1))
    return Inflation(*values)


class Rates(NamedTuple):
    escape: float
    false_alarm: float


def choose_half(has_defects: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """bool [G]: half of the groups with defects, and half of the others."""
    is_chosen = np.zeros(len(has_defects), bool)
    for of_kind in (np.flatnonzero(has_defects), np.flatnonzero(~has_defects)):
        is_chosen[random.permutation(of_kind)[: len(of_kind) // 2]] = True
    return is_chosen


def compare_halves(
    labels: np.ndarray,
    scores: np.ndarray,
    folds: np.ndarray,
    half: np.ndarray,
    settings: ThresholdConfig,
    share: float | None,
) -> tuple[Rates, Rates] | None:
    """Rates of the images of a `half` (bool [N]) by nested thresholds, and of the others by its threshold.

    None where a class is missing among the images that a threshold is chosen from, or among the others, and
    where the half has a single fold.
    """
    own_labels = labels[half]
    own_folds = folds[half]
    if not has_both_classes(labels[~half]) or len(np.unique(own_folds)) < 2:
        return None
    for fold in np.unique(own_folds):
        if not has_both_classes(own_labels[own_folds != fold]):
            return None
    nested = nested_predictions(own_labels, scores[half], own_folds, settings, share)
    threshold = choose_threshold(own_labels, scores[half], settings, share)
    estimated = measure_rates(own_labels, nested)
    return estimated, measure_rates(labels[~half], scores[~half] >= threshold)


def has_both_classes(labels: np.ndarray) -> bool:
    return bool(labels.any() and not labels.all())


def measure_rates(labels: np.ndarray, predicted: np.ndarray) -> Rates:
    """Shares of the defects that pass and of the normal images that are rejected; both classes are needed."""
    return Rates(
        escape=float((predicted[labels == 1] == 0).mean()),
        false_alarm=float(predicted[labels == 0].mean()),
    )
