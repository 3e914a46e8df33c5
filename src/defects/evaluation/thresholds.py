"""Every threshold of the project is chosen here, and the Decision is made of it.

From scores to a submission's threshold: decide_for_shares -> decide -> choose_threshold -> best_threshold,
fpr_threshold or cost_threshold; submitted_prior says for which share. An image is defective when its score
reaches the threshold (score >= threshold).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from defects.config_schema import CostConfig, ThresholdConfig
from defects.evaluation.class_share import count_share, estimate_share, find_doubt
from defects.evaluation.decision import Decision
from defects.evaluation.metrics import interval, macro_f1, macro_f1_of_counts, share_weights
from defects.evaluation.pixels import CellCounts
from defects.evaluation.scales import fit_calibration

DEFAULTS = ThresholdConfig()
MARKED_PROBABILITY = 0.5  # probability from which a segmenter's pixel is marked


# --- the decision ------------------------------------------------------------------------------------------


def decide_for_shares(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    new_scores: np.ndarray,
    predict_nested: Callable[[float | None], np.ndarray | None],
    settings: ThresholdConfig,
    prior: dict,
) -> dict[str, Decision]:
    """The decision for the training share of defects (`train`), and for the `estimated` one, if there is one.

    `prior` is that of `estimate_prior_shift`. predict_nested(share) is `nested` of `decide` for a share, None
    for that of the out-of-fold images; all other arguments are those of `decide`.
    """
    decisions = {"train": decide(labels, scores, predict_nested(None), groups, new_scores, settings)}
    share = prior["estimated_share"]
    if share is not None:
        decisions["estimated"] = decide(
            labels,
            scores,
            predict_nested(share),
            groups,
            new_scores,
            settings,
            estimated_share=share,
            share_error=prior["counted_error"] or 0.0,
        )
    return decisions


def choose_submitted_threshold(
    labels: np.ndarray, scores: np.ndarray, new_scores: np.ndarray, settings: ThresholdConfig
) -> float:
    """The threshold of the Decision that is submitted, as log-odds; arguments as those of `decide`."""
    share = None
    if settings.prior == "estimated":
        prior = estimate_prior_shift(labels, scores, new_scores, settings)
        if submitted_prior(settings, prior) == "estimated":
            share = prior["estimated_share"]
    return choose_threshold(labels, scores, settings, share)


def decide(
    labels: np.ndarray,
    scores: np.ndarray,
    nested: np.ndarray | None,
    groups: np.ndarray,
    new_scores: np.ndarray,
    settings: ThresholdConfig,
    estimated_share: float | None = None,
    share_error: float = 0.0,
) -> Decision:
    """The decision for the share of defects among the out-of-fold images, or for `estimated_share`.

    labels 0/1, scores (log-odds) and groups [N] are of the out-of-fold images, new_scores [T] of the test
    images; `nested` 0/1 [N] is predicted by thresholds for the same share, fitted on the other folds, None
    for a single fold. The expected score weights these to the share, since macro-F1 depends on it.
    `share_error` is the standard error of the estimated share.
    """
    has_defects = bool(labels.any())
    threshold = choose_threshold(labels, scores, settings, estimated_share)
    share = float(labels.mean())
    weights = None
    if estimated_share is not None:
        share = estimated_share
        weights = share_weights(labels, estimated_share)
    expected_score = None
    interval_90 = None
    if has_defects and nested is not None:
        expected_score = macro_f1(labels, nested, weights)
        interval_90 = interval(
            labels,
            nested,
            groups,
            share=estimated_share,
            share_error=share_error,
            new_images=len(new_scores),
        )
    rule = settings.rule if has_defects else "expected_fpr"
    costs = settings.costs if rule == "expected_cost" else None
    expected_cost = None
    if costs is not None and nested is not None:
        expected_cost = measure_cost(labels, nested, costs, share)
    return Decision(
        metric="macro-F1",
        rule=rule,
        fpr=settings.fpr if rule == "expected_fpr" else None,
        prior="train" if estimated_share is None else "estimated",
        share=share,
        threshold=float(expit(threshold)),
        score_threshold=threshold,
        predicted_defective=int((new_scores >= threshold).sum()),
        expected_score=expected_score,
        interval_90=interval_90,
        costs=None if costs is None else costs.model_dump(),
        expected_cost=expected_cost,
    )


def submitted_prior(settings: ThresholdConfig, prior: dict) -> str:
    """train or estimated: the share of defects that is submitted for, by the setting `threshold.prior`.

    `prior` is that of `estimate_prior_shift`. An estimate that is not to be trusted is not used.
    """
    is_trusted = prior["estimated_share"] is not None and prior["doubt"] is None
    return "estimated" if settings.prior == "estimated" and is_trusted else "train"


# --- thresholds of images ----------------------------------------------------------------------------------


def choose_threshold(
    labels: np.ndarray,
    scores: np.ndarray,
    settings: ThresholdConfig = DEFAULTS,
    share: float | None = None,
) -> float:
    """The threshold by `threshold.rule`: macro_f1, expected_fpr or expected_cost.

    macro_f1 and expected_cost are those of images weighted to a `share` of defects, by default their own, the
    latter to a share of its own where one is set; expected_fpr does not depend on it. Where only one class is
    present, no rule can weigh both: without defects it is expected_fpr, without normal images every image is
    defective.
    """
    if not (labels == 0).any():
        return float(scores.min())
    if settings.rule == "expected_fpr" or not (labels == 1).any():
        return fpr_threshold(scores[labels == 0], settings.fpr)
    if settings.rule == "expected_cost":
        return cost_threshold(labels, scores, settings.costs, share)
    return best_threshold(labels, scores, share)[0]


def best_threshold(labels: np.ndarray, scores: np.ndarray, share: float | None = None) -> tuple[float, float]:
    """The threshold with the highest macro-F1 on these scores, and that macro-F1.

    With `share` the images are weighted so that defects have this share of the total (both classes needed).
    Every threshold between distinct scores is tried, by one sort. Among equal optima the one in the widest
    gap is taken: it is the least likely to be crossed by a new score.
    """
    counts = count_errors_by_threshold(labels, scores)
    fp = counts.fp
    fn = counts.fn
    tp = counts.defects - fn
    tn = counts.normal - fp
    if share is not None:
        defect_weight = share / counts.defects
        normal_weight = (1 - share) / counts.normal
        fp = normal_weight * fp
        tn = normal_weight * tn
        fn = defect_weight * fn
        tp = defect_weight * tp
    value = macro_f1_of_counts(tp, fp, fn, tn)
    best = np.lexsort((-counts.gap, -value))[0]
    return float(counts.threshold[best]), float(value[best])


class CostCurve(NamedTuple):
    """Expected cost of an image [K] by threshold [K] (as the scores), lowest first; with the best of them."""

    threshold: np.ndarray
    cost: np.ndarray
    best: int


def cost_threshold(
    labels: np.ndarray, scores: np.ndarray, costs: CostConfig, share: float | None = None
) -> float:
    """The threshold of the least expected cost; both classes are needed. `share` as for choose_threshold."""
    curve = trace_expected_cost(labels, scores, costs, share)
    return float(curve.threshold[curve.best])


def trace_expected_cost(
    labels: np.ndarray, scores: np.ndarray, costs: CostConfig, share: float | None = None
) -> CostCurve:
    """The expected cost of an image at every threshold between distinct scores; both classes are needed.

    Defects are taken to have `costs.defect_share` of the images, else `share`, else the share of `labels`.
    Among equal optima the one in the widest gap is taken, as for macro-F1.
    """
    counts = count_errors_by_threshold(labels, scores)
    escape_cost, alarm_cost = weigh_costs(labels, costs, share)
    cost = counts.fn * escape_cost / counts.defects + counts.fp * alarm_cost / counts.normal
    best = int(np.lexsort((-counts.gap, cost))[0])
    return CostCurve(counts.threshold, cost, best)


def measure_cost(
    labels: np.ndarray, predicted: np.ndarray, costs: CostConfig, share: float | None = None
) -> float | None:
    """The expected cost of an image, by 0/1 predictions [N]; None where only one class is there."""
    if labels.all() or not labels.any():
        return None
    escape_cost, alarm_cost = weigh_costs(labels, costs, share)
    escaped = float((predicted[labels == 1] == 0).mean())
    rejected = float((predicted[labels == 0] == 1).mean())
    return escape_cost * escaped + alarm_cost * rejected


def weigh_costs(labels: np.ndarray, costs: CostConfig, share: float | None) -> tuple[float, float]:
    """Cost of an image if all defects escape, and if all normal images are rejected."""
    defect_share = float(labels.mean()) if share is None else share
    if costs.defect_share is not None:
        defect_share = costs.defect_share
    return costs.escape * defect_share, costs.false_alarm * (1 - defect_share)


def fpr_threshold(normal_scores: np.ndarray, fpr: float) -> float:
    """The lowest threshold that at most a share `fpr` of these normal images reaches: an exact quantile."""
    ordered = np.sort(normal_scores)
    above = len(ordered) - np.searchsorted(ordered, ordered, side="right")
    return float(np.nextafter(ordered[above / len(ordered) <= fpr][0], np.inf))


def equal_error(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold at which false acceptance equals false rejection, and that rate.

    False acceptance is the share of the defects that pass, false rejection the share of the normal images
    that do not. Where no threshold makes them equal, the one that brings them nearest is taken (of several
    the one with fewer errors, then the widest gap), and the rate is their mean. Needs both classes.
    """
    counts = count_errors_by_threshold(labels, scores)
    # Over the common denominator: rates of equal distance would differ by rounding.
    accepted = counts.fn * counts.normal
    rejected = counts.fp * counts.defects
    best = np.lexsort((-counts.gap, accepted + rejected, abs(accepted - rejected)))[0]
    rate = (accepted[best] + rejected[best]) / (2 * counts.normal * counts.defects)
    return float(counts.threshold[best]), float(rate)


class ErrorCounts(NamedTuple):
    """Errors at all distinct thresholds, lowest first; at the last one no image is defective.

    threshold and gap (the distance between the two scores it lies between) [K]; errors as counts [K]:
    fp normal images that reach it, fn defects below it; `normal` and `defects` are the totals.
    """

    threshold: np.ndarray
    gap: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    normal: float
    defects: float


def count_errors_by_threshold(labels: np.ndarray, scores: np.ndarray) -> ErrorCounts:
    """At every threshold that divides `scores` [N] in another way, in the middle between two of them."""
    distinct, position = np.unique(scores, return_inverse=True)
    defects = np.bincount(position, weights=labels == 1, minlength=len(distinct))
    normal = np.bincount(position, weights=labels == 0, minlength=len(distinct))
    above_all = np.nextafter(distinct[-1], np.inf)
    return ErrorCounts(
        threshold=np.concatenate([distinct[:1], middles_between(distinct), [above_all]]),
        gap=np.concatenate([[0.0], np.diff(distinct), [0.0]]),
        fp=np.append(normal[::-1].cumsum()[::-1], 0),
        fn=np.append(0, defects.cumsum()),
        normal=normal.sum(),
        defects=defects.sum(),
    )


def middles_between(distinct: np.ndarray) -> np.ndarray:
    """Thresholds [K - 1] between ascending values [K]: the values above it, and only they, reach it."""
    middle = distinct[:-1] / 2 + distinct[1:] / 2
    # Between neighbouring floats there is no middle: the upper one is the threshold.
    return np.where(middle > distinct[:-1], middle, distinct[1:])


def nested_predictions(
    labels: np.ndarray,
    scores: np.ndarray,
    folds: np.ndarray,
    settings: ThresholdConfig = DEFAULTS,
    share: float | None = None,
) -> np.ndarray | None:
    """0/1 [N], each fold by the threshold fitted on all others; None for a single fold.

    `share` as for choose_threshold.
    """
    fold_names = np.unique(folds)
    if len(fold_names) < 2:
        return None
    predicted = np.zeros(len(labels), dtype=int)
    for fold in fold_names:
        is_val = folds == fold
        threshold = choose_threshold(labels[~is_val], scores[~is_val], settings, share)
        predicted[is_val] = scores[is_val] >= threshold
    return predicted


# --- the share of defects among the test images ------------------------------------------------------------


def estimate_prior_shift(
    labels: np.ndarray, scores: np.ndarray, new_scores: np.ndarray, settings: ThresholdConfig = DEFAULTS
) -> dict:
    """The share of defects behind the test scores `new_scores` [T], from the out-of-fold `scores` [N].

    Plain values: training_share, estimated_share, counted_share with counted_error, and `doubt` (why the
    estimate is not to be trusted, None if it is). Without defects, or without normal images, there is no
    estimated share.
    """
    prior = {
        "training_share": float(labels.mean()),
        "estimated_share": None,
        "counted_share": None,
        "counted_error": None,
        "doubt": "one class only among the out-of-fold images",
    }
    if labels.all() or not labels.any():
        return prior
    share = estimate_share(fit_calibration(labels, scores)(new_scores), labels.mean())
    threshold = choose_threshold(labels, scores, settings)
    count = count_share(labels, scores >= threshold, new_scores >= threshold)
    prior["estimated_share"] = share
    prior["doubt"] = find_doubt(share, count, len(new_scores))
    if count is not None:
        prior["counted_share"] = count.share
        prior["counted_error"] = count.error
    return prior


# --- thresholds of maps and masks --------------------------------------------------------------------------


def fit_map_limits(
    maps: Iterable[np.ndarray], fpr: float, has_probabilities: bool, has_normal: bool
) -> tuple[list[float], list[float]]:
    """Of each plane of `maps` [K, ...]: the median over all images, and from which value a cell is marked.

    The latter is reached anywhere in a share `fpr` of these images, which are normal ones. Without normal
    ones (`has_normal` False) both are quantiles of all cells of all images. A probability of a pixel is
    marked from MARKED_PROBABILITY on.
    """
    counts: list[CellCounts] = []
    highest = []
    for planes in maps:
        counts = counts or [CellCounts() for _ in planes]
        for plane, count in zip(planes, counts, strict=True):
            count.add(plane)
        highest.append(planes.reshape(len(planes), -1).max(axis=1).astype(float))
    medians = [count.quantile(0.5) for count in counts]
    if has_probabilities:
        return medians, [MARKED_PROBABILITY] * len(medians)
    if not has_normal:
        return medians, [count.quantile(1 - fpr) for count in counts]
    return medians, [fpr_threshold(values, fpr) for values in np.transpose(highest)]


def fit_acceptance_threshold(
    values: np.ndarray, reached: np.ndarray, below: np.ndarray, default: float = 0.0
) -> float:
    """The threshold t with the largest sum of `reached` where values >= t, and of `below` elsewhere.

    `default` where no threshold is better; else in the middle between two values.
    """
    distinct, position = np.unique(values, return_inverse=True)
    gain = np.zeros(len(distinct) + 1)
    np.add.at(gain, position + 1, below - reached)
    gain = gain.cumsum()  # of emptying all that lie below the i-th value
    best = int(gain.argmax())
    if gain[best] <= gain[np.searchsorted(distinct, default)] + 1e-9:
        return default
    above_all = np.nextafter(distinct[-1], np.inf)
    thresholds = np.concatenate([[0.0], middles_between(distinct), [above_all]])
    return float(thresholds[best])
