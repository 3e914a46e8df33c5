"""Where decisions come from: every threshold of the project is chosen here, and the Decision is made of it.

An image is called defective when its score reaches the threshold (score >= threshold). The Decision is one
record of what is submitted: everything that tells what a submission is worth takes it from here: the printed
lines, the JSON, the ledger, the message on Kaggle, src/evaluate.py.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from defects.config import ThresholdConfig
from defects.evaluation.metrics import interval, macro_f1, macro_f1_of_counts, share_weights
from defects.evaluation.pixels import CellCounts
from defects.evaluation.scales import fit_calibration

SHARE_NAMES = {"train": "training share", "estimated": "estimated share"}  # prior -> words

TINY = 1e-12  # in place of a denominator of 0
SURE = 0.5  # probability from which a segmenter's pixel is marked
STEPS = 10_000  # of EM, which creeps where the scores hardly tell the classes apart
CLOSE = 1e-9  # a step of the share that ends it


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


def between(distinct: np.ndarray) -> np.ndarray:
    """Cuts [K - 1] between ascending values [K]: reaching a cut is being one of those above it."""
    middle = distinct[:-1] / 2 + distinct[1:] / 2
    # Between neighbouring floats there is no middle: reaching the upper one is the cut.
    return np.where(middle > distinct[:-1], middle, distinct[1:])


@dataclass(frozen=True)
class Decision:
    """How scores become answers, and what that is expected to score on the test images.

    `expected_score` holds for images of which `share` are defective: the test images, if that is their share.
    """

    metric: str  # macro-F1, or Dice for masks
    rule: str  # as threshold.rule; for masks tuned or untuned
    prior: str  # where `share` comes from: train (the out-of-fold images) or estimated (the test scores)
    share: float  # of defects; by the rule macro_f1 the threshold is the best one for it
    threshold: float | None  # probability from which an image is called defective; None for masks
    score_threshold: float | None  # the same as log-odds
    called_defective: int | None  # test images
    expected_score: float | None  # nested, out of fold; None without defects or with a single fold
    interval_90: tuple[float, float] | None  # of the score on this many test images

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Decision":
        """Raises TypeError or KeyError for anything but the values of `to_json`."""
        interval_90 = values["interval_90"]
        return cls(**values | {"interval_90": None if interval_90 is None else tuple(interval_90)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """One line for people: the same wherever the decision is shown."""
        parts = [f"expected {self.metric} unknown"]
        if self.expected_score is not None:
            parts = [f"expected {self.metric} {self.expected_score:.4f}"]
        if self.interval_90 is not None:
            low, high = self.interval_90
            parts.append(f"90 % interval {low:.4f} - {high:.4f}")
        parts.append(f"{SHARE_NAMES[self.prior]} of defects {self.share:.1%}")
        parts.append(f"rule {self.rule}")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:.4f}")
        return ", ".join(parts)


def submitted_prior(settings: ThresholdConfig, prior: dict) -> str:
    """train or estimated: the share of defects that is submitted for, from `threshold.prior` and prior_shift.

    An estimate that is not to be trusted is not used.
    """
    is_trusted = prior["estimated_share"] is not None and prior["doubt"] is None
    return "estimated" if settings.prior == "estimated" and is_trusted else "train"


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
    images; `nested` [N] is what thresholds for the same share, fitted on the other folds, call defective,
    None for a single fold. The expected score weights these to the share, since macro-F1 depends on it.
    `share_error` is the standard error of the estimated share.
    """
    has_defects = bool(labels.any())
    threshold = choose_threshold(labels, scores, settings.rule, settings.fpr, estimated_share)
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
    return Decision(
        metric="macro-F1",
        rule=settings.rule if has_defects else "expected_fpr",
        prior="train" if estimated_share is None else "estimated",
        share=share,
        threshold=float(expit(threshold)),
        score_threshold=threshold,
        called_defective=int((new_scores >= threshold).sum()),
        expected_score=expected_score,
        interval_90=interval_90,
    )


def fit_map_limits(
    maps: Iterable[np.ndarray], fpr: float, has_probabilities: bool, has_normal: bool
) -> tuple[list[float], list[float]]:
    """Of each plane of `maps` [K, h, w]: the median over all images, and from which value a cell is marked.

    The latter is reached anywhere in a share `fpr` of these images, which are normal ones. Without normal
    ones (`has_normal` False) both are quantiles of all cells of all images. A probability of a pixel is
    marked from SURE on.
    """
    counts: list[CellCounts] = []
    highest = []
    for planes in maps:
        counts = counts or [CellCounts() for _ in planes]
        for plane, count in zip(planes, counts, strict=True):
            count.add(plane)
        highest.append(planes.max((1, 2)).astype(float))
    medians = [count.quantile(0.5) for count in counts]
    if has_probabilities:
        return medians, [SURE] * len(medians)
    if not has_normal:
        return medians, [count.quantile(1 - fpr) for count in counts]
    return medians, [fpr_threshold(values, fpr) for values in np.transpose(highest)]


def best_cut(values: np.ndarray, reached: np.ndarray, below: np.ndarray, default: float = 0.0) -> float:
    """The threshold t with the largest sum of `reached` where values >= t, and of `below` elsewhere.

    `default` where no other is better; else in the middle between two values.
    """
    distinct, position = np.unique(values, return_inverse=True)
    gain = np.zeros(len(distinct) + 1)
    np.add.at(gain, position + 1, below - reached)
    gain = gain.cumsum()  # of emptying all that lie below the i-th value
    best = int(gain.argmax())
    if gain[best] <= gain[np.searchsorted(distinct, default)] + 1e-9:
        return default
    cuts = np.concatenate([[0.0], between(distinct), [np.nextafter(distinct[-1], np.inf)]])
    return float(cuts[best])


class Count(NamedTuple):
    """A share of defects and its standard error."""

    share: float
    error: float


def estimate_share(log_odds: np.ndarray, training_share: float) -> float:
    """The share of defects among images [N] with these calibrated log-odds, by EM.

    Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori
    probabilities", equations 2.4 to 2.7. `log_odds` hold at `training_share`, which lies between 0 and 1.
    """
    share = training_share
    with np.errstate(divide="ignore"):  # the share may run to 0 or 1
        for _ in range(STEPS):
            previous, shift = share, logit(share) - logit(training_share)
            share = float(expit(log_odds + shift).mean())
            if abs(share - previous) < CLOSE:
                break
    return share


def counted_share(labels: np.ndarray, called: np.ndarray, new_called: np.ndarray) -> Count | None:
    """The share of defects from how many test images are called defective, corrected by the known errors.

    `labels` and `called` 0/1 [N] of held-out images, `new_called` [T]. Cruder than EM, but it asks for no
    calibration: a check on it. None where as many normal images are called defective as defects.
    """
    hit, false, rate = called[labels == 1].mean(), called[labels == 0].mean(), new_called.mean()
    if hit <= false:
        return None
    share = float(np.clip((rate - false) / (hit - false), 0, 1))
    spreads = (
        (rate, 1.0, len(new_called)),
        (hit, share, (labels == 1).sum()),
        (false, 1 - share, (labels == 0).sum()),
    )
    variance = sum(weight**2 * _smoothed(value, count) / count for value, weight, count in spreads)
    return Count(share, float(np.sqrt(variance) / (hit - false)))


def prior_shift(
    labels: np.ndarray, scores: np.ndarray, new: np.ndarray, rule: str = "macro_f1", fpr: float = 0.05
) -> dict:
    """The share of defects behind the test scores `new` [T], from the out-of-fold `scores` [N].

    Plain values: training_share, estimated_share, counted_share with counted_error, and `doubt` (why the
    estimate is not to be trusted, None if it is). Without defects, or without normal images, there is no
    estimated share.
    """
    found = {
        "training_share": float(labels.mean()),
        "estimated_share": None,
        "counted_share": None,
        "counted_error": None,
        "doubt": "one class only among the out-of-fold images",
    }
    if labels.all() or not labels.any():
        return found
    share = estimate_share(fit_calibration(labels, scores)(new), labels.mean())
    threshold = choose_threshold(labels, scores, rule, fpr)
    count = counted_share(labels, scores >= threshold, new >= threshold)
    found |= {"estimated_share": share, "doubt": doubt(share, count, len(new))}
    if count is not None:
        found |= {"counted_share": count.share, "counted_error": count.error}
    return found


def doubt(share: float, count: Count | None, images: int) -> str | None:
    """Why EM's share of `images` is not to be trusted; None if nothing speaks against it."""
    if not 1 <= share * images <= images - 1:
        return f"it ran to the edge: {share * images:.1f} of {images} images"
    if count is None:
        return "the scores do not tell defects from normal images"
    if abs(share - count.share) > 2 * count.error:
        return f"counting says {count.share:.1%} ± {count.error:.1%}"
    return None


def _smoothed(value: float, count: int) -> float:
    """Variance of one draw; a rate of 0 or 1 that was seen in `count` of them is not known to be that."""
    kept = (value * count + 0.5) / (count + 1)
    return kept * (1 - kept)
