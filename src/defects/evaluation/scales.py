"""Scores of different experiments brought to one scale, log-odds, by what held-out images say of each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

MIN_SLOPE = 1e-3  # log-odds per standard deviation: a member without a clue is left almost without a say

Scale = Callable[[np.ndarray], np.ndarray]  # [N] -> [N], increasing


class Calibration(NamedTuple):
    """Log-odds of a defect, at the training share, as a straight line over a score."""

    slope: float
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return self.offset + self.slope * scores


class Ranks(NamedTuple):
    """Log-odds of the rank among held-out images, both lists sorted.

    A score is placed among the normal images: how many defects there are does not matter. Above and between
    them the defects, which together count as one normal image, keep their order. Over members these log-odds
    add up much as Fisher combines p-values.
    """

    normal: np.ndarray
    defects: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        below, total = _below(self.normal, scores), len(self.normal) + 1
        if len(self.defects):
            below, total = below + _below(self.defects, scores) / len(self.defects), total + 1
        return logit((below + 0.5) / total)


def fit_calibration(labels: np.ndarray, scores: np.ndarray) -> Calibration:
    """Logistic calibration (Platt 1999) of one score [N]; needs both classes.

    Classes are not balanced, so that probabilities mean something. The slope is that of standardised scores,
    with a standard normal prior: thirty defects that are told apart perfectly leave it finite. It is
    never negative: a calibration does not change the order.
    """
    center, spread = scores.mean(), scores.std() or 1.0
    model = LogisticRegression(solver="newton-cholesky").fit(((scores - center) / spread)[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < MIN_SLOPE:
        slope, offset = MIN_SLOPE, float(logit(labels.mean()))
    return Calibration(slope / spread, offset - slope * center / spread)


def fit_ranks(labels: np.ndarray, scores: np.ndarray) -> Ranks:
    """Of one score [N]; invariant to any increasing transform of it."""
    return Ranks(np.sort(scores[labels == 0]), np.sort(scores[labels == 1]))


def _below(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many of `ordered` lie below each score; of those equal to it half."""
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2
