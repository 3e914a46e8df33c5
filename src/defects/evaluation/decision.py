"""What is submitted, in one record: rule, share of defects, threshold, expected score with its interval.

Everything that tells what a submission is worth takes it from here: the printed lines, the JSON, the ledger,
the message on Kaggle, src/evaluate.py.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from defects.config import ThresholdConfig
from defects.evaluation.interval import interval
from defects.evaluation.thresholds import choose_threshold, macro_f1, share_weights

SHARE_NAMES = {"train": "training share", "estimated": "estimated share"}  # prior -> words


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
