"""Where decisions come from: every threshold of the project is chosen here, and the Decision is made of it.

An image is called defective when its score reaches the threshold (score >= threshold). The Decision is one
record of what is submitted: everything that tells what a submission is worth takes it from here: the printed
lines, the JSON, the ledger, the message on Kaggle, src/evaluate.py.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from defects.config import ThresholdConfig
from defects.evaluation.interval import interval
from defects.evaluation.metrics import macro_f1, macro_f1_of_counts, share_weights

SHARE_NAMES = {"train": "training share", "estimated": "estimated share"}  # prior -> words
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
