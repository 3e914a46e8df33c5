"""Several experiments as one: a common scale, weights, and what they are worth on folds not used for them.

Scales, weights and thresholds are fitted on k - 1 folds and scored on the remaining one; where the method is
chosen too, it is chosen on these k - 1 folds, by the same estimate inside of them.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from defects.config_schema import EnsembleConfig, ThresholdConfig
from defects.evaluation.metrics import bootstrap, macro_f1
from defects.evaluation.scales import ScoreScale, fit_calibration, fit_ranks
from defects.evaluation.thresholds import choose_threshold
from defects.messages import UserError

NOTHING_LEFT_OUT: frozenset[str] = frozenset()

# labels [N], scores [N, M] of the members on one scale -> weights [M]
FitWeights = Callable[[np.ndarray, np.ndarray], np.ndarray]


class OutOfFoldScores(NamedTuple):
    """Out-of-fold images: labels 0/1 [N], scores of the members as log-odds [N, M], folds [N], groups [N]."""

    labels: np.ndarray
    scores: np.ndarray
    folds: np.ndarray
    groups: np.ndarray

    def where(self, mask: np.ndarray) -> "OutOfFoldScores":
        return OutOfFoldScores(*(values[mask] for values in self))


class Blend(NamedTuple):
    """A scale and a weight for each member."""

    scales: list[ScoreScale]
    weights: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Log-odds [N] of scores [N, M]."""
        return _apply_scales(self.scales, scores) @ self.weights


class Ensemble:
    """The members' out-of-fold scores and all that is fitted on them, once for each set of folds left out.

    `methods` are those that can be asked for; mean, which the others have to beat, is always one of them.
    `scale` is calibration, rank without both classes to calibrate on, none for a single member.
    """

    def __init__(
        self, names: list[str], sample: OutOfFoldScores, settings: EnsembleConfig, threshold: ThresholdConfig
    ):
        self.sample = sample
        self.threshold = threshold
        self.folds = np.unique(sample.folds).tolist()
        has_both_classes = 0 < sample.labels.mean() < 1
        self.fit_weights: dict[str, FitWeights] = {"mean": weigh_equally}
        if len(names) == 1:
            self.scale = "none"
        else:
            self.scale = "calibration" if has_both_classes else "rank"
            if settings.weights:
                weights = order_weights(settings.weights, names)
                self.fit_weights["given"] = lambda labels, scaled_scores: weights
            elif has_both_classes:
                method = "stack" if settings.method == "auto" else settings.method
                self.fit_weights[method] = METHODS[method]
        self.methods = list(self.fit_weights)
        self.is_chosen = settings.method == "auto" and "stack" in self.methods
        # The nested estimate asks for the same folds again and again.
        self.fit = cache(self._fit)
        self.predict_method = cache(self._predict_method)
        self.choose = cache(self._choose)

    def _fit(self, method: str, left_out: frozenset[str] = NOTHING_LEFT_OUT) -> Blend:
        """Scales and weights by a method, fitted on the images of all folds that are not left out."""
        if self.scale == "none":
            return Blend([np.asarray], np.ones(1))
        sample = self._without(left_out)
        fit_scale = fit_ranks if self.scale == "rank" else fit_calibration
        scales = [fit_scale(sample.labels, column) for column in sample.scores.T]
        scaled_scores = _apply_scales(scales, sample.scores)
        return Blend(scales, self.fit_weights[method](sample.labels, scaled_scores))

    def _predict_method(self, method: str, left_out: frozenset[str] = NOTHING_LEFT_OUT) -> np.ndarray | None:
        """0/1 for the images of all folds not left out, each by the others; None for a single fold."""
        margins = self._measure_margins(left_out, lambda out: self.fit(method, out))
        return None if margins is None else (margins >= 0).astype(int)

    def _choose(self, left_out: frozenset[str] = NOTHING_LEFT_OUT) -> str:
        """The method: the last one where nothing is to be chosen, else that of the best nested macro-F1.

        The mean stays unless it is beaten by more than a standard error of the difference.
        """
        if not self.is_chosen:
            return self.methods[-1]
        labels = self._without(left_out).labels
        predicted = {name: self.predict_method(name, left_out) for name in self.methods}
        if predicted["mean"] is None:
            return "mean"
        best = max(predicted, key=lambda name: macro_f1(labels, predicted[name]))
        gain, error = self.measure_gain(best, left_out)
        return best if gain > error else "mean"

    def measure_gain(self, method: str, left_out: frozenset[str] = NOTHING_LEFT_OUT) -> tuple[float, float]:
        """Nested macro-F1 of a method less that of the mean, and its standard error: groups drawn anew."""
        sample = self._without(left_out)
        predicted = self.predict_method(method, left_out)
        by_mean = self.predict_method("mean", left_out)
        gain = macro_f1(sample.labels, predicted) - macro_f1(sample.labels, by_mean)
        drawn = bootstrap(sample.labels, np.stack([predicted, by_mean]), sample.groups)
        return gain, float((drawn[:, 0] - drawn[:, 1]).std())

    def predict_nested(self, share: float | None = None) -> np.ndarray | None:
        """0/1 [N]: every image by all that is fitted and chosen on the other folds; None for a single fold.

        Thresholds are those for a `share` of defects, see choose_threshold.
        """
        margins = self.measure_nested_margins(share)
        return None if margins is None else (margins >= 0).astype(int)

    def measure_nested_margins(self, share: float | None = None) -> np.ndarray | None:
        """As predict_nested, by how much each score exceeds the threshold, in log-odds [N]."""
        return self._measure_margins(NOTHING_LEFT_OUT, lambda out: self.fit(self.choose(out), out), share)

    def _measure_margins(
        self,
        left_out: frozenset[str],
        fit_blend: Callable[[frozenset[str]], Blend],
        share: float | None = None,
    ) -> np.ndarray | None:
        """By how much the scores of all folds not left out exceed their thresholds, in log-odds.

        Blend and threshold of a fold are fitted on the others: `fit_blend(folds)` fits without these `folds`.
        """
        sample = self._without(left_out)
        folds = [fold for fold in self.folds if fold not in left_out]
        if len(folds) < 2:
            return None
        margins = np.zeros(len(sample.labels))
        for fold in folds:
            is_val = sample.folds == fold
            blend = fit_blend(left_out | {fold})
            fitted_scores = blend(sample.scores[~is_val])
            threshold = choose_threshold(sample.labels[~is_val], fitted_scores, self.threshold, share)
            margins[is_val] = blend(sample.scores[is_val]) - threshold  # its sign is exact
        return margins

    def _without(self, left_out: frozenset[str]) -> OutOfFoldScores:
        return self.sample.where(~np.isin(self.sample.folds, list(left_out)))


def weigh_equally(labels: np.ndarray, scaled_scores: np.ndarray) -> np.ndarray:
    return np.full(scaled_scores.shape[1], 1 / scaled_scores.shape[1])


def fit_stacking_weights(labels: np.ndarray, scaled_scores: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression on the scaled scores; members with negative ones are dropped."""
    members = np.arange(scaled_scores.shape[1])
    while len(members):
        model = LogisticRegression(solver="newton-cholesky").fit(scaled_scores[:, members], labels)
        slopes = model.coef_[0]
        if (slopes > 0).all():
            weights = np.zeros(scaled_scores.shape[1])
            weights[members] = slopes / slopes.sum()
            return weights
        members = members[slopes > 0]
    return weigh_equally(labels, scaled_scores)


METHODS: dict[str, FitWeights] = {"mean": weigh_equally, "stack": fit_stacking_weights}


def order_weights(weights: dict[str, float], names: list[str]) -> np.ndarray:
    """`ensemble.weights` in the order of `names`, with sum one. UserError if it is about other members."""
    if set(weights) != set(names):
        raise UserError(
            f"ensemble.weights names {', '.join(sorted(weights))}, but {', '.join(names)} are blended: give "
            "each of them a weight, 0 to leave it out"
        )
    ordered = np.array([weights[name] for name in names], dtype=float)
    return ordered / ordered.sum()


def compare_methods(ensemble: Ensemble, names: list[str]) -> dict[str, dict]:
    """For each method: naive and nested macro-F1, optimism, gain over the mean with its error, weights."""
    labels = ensemble.sample.labels
    table = {}
    for method in ensemble.methods:
        blend = ensemble.fit(method)
        nested = ensemble.predict_method(method)
        row = dict.fromkeys(["naive", "nested", "optimism", "gain", "gain_error"])
        if labels.any():
            blended = blend(ensemble.sample.scores)
            threshold = choose_threshold(labels, blended, ensemble.threshold)
            row["naive"] = macro_f1(labels, blended >= threshold)
            if nested is not None:
                row["nested"] = macro_f1(labels, nested)
                row["optimism"] = row["naive"] - row["nested"]
                if method != "mean":
                    row["gain"], row["gain_error"] = ensemble.measure_gain(method)
        row["weights"] = dict(zip(names, blend.weights.tolist(), strict=True))
        table[method] = row
    return table


def _apply_scales(scales: list[ScoreScale], scores: np.ndarray) -> np.ndarray:
    """Scores [N, M], each column by the scale of its member."""
    return np.column_stack([scale(column) for scale, column in zip(scales, scores.T, strict=True)])
