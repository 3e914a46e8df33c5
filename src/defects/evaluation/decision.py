"""The Decision: one record of what is submitted, made in thresholds.py.

The printed lines, the JSON, the ledger, the message on Kaggle and src/evaluate.py show it.
"""

from dataclasses import asdict, dataclass
from typing import Any

SHARE_NAMES = {"train": "training share", "estimated": "estimated share"}  # prior -> words


@dataclass(frozen=True)
class Decision:
    """How scores become answers, and what that is expected to score on the test images.

    `expected_score` holds for images of which `share` are defective: the test images, if that is their share.
    """

    metric: str  # macro-F1, or Dice for masks
    rule: str  # as threshold.rule; for masks tuned or untuned
    fpr: float | None  # the largest share of normal images to reject, by the rule expected_fpr; else None
    prior: str  # where `share` comes from: train (the out-of-fold images) or estimated (the test scores)
    share: float  # of defects; by macro_f1, and by expected_cost without a share of its own, the best for it
    threshold: float | None  # probability from which an image is defective; None for masks
    score_threshold: float | None  # the same as log-odds
    predicted_defective: int | None  # test images
    expected_score: float | None  # nested, out of fold; None without defects or with a single fold
    interval_90: tuple[float, float] | None  # of the score on this many test images
    costs: dict[str, float | None] | None = None  # threshold.costs, by the rule expected_cost; else None
    expected_cost: float | None = None  # of an image by `costs`, nested, out of fold

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
        parts.append(describe_rule(self.rule, self.fpr, self.costs))
        if self.expected_cost is not None:
            parts.append(f"expected cost {self.expected_cost:.4g} an image")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:.4f}")
        return ", ".join(parts)


def describe_rule(rule: str, fpr: float | None, costs: dict[str, float | None] | None = None) -> str:
    """What a threshold is chosen by, in words; of masks, which of the two mask rules is submitted."""
    if rule == "expected_cost":
        text = f"least expected cost (escape {costs['escape']:g}, false alarm {costs['false_alarm']:g}"
        if costs["defect_share"] is not None:
            text += f", {100 * costs['defect_share']:g} % defects"
        return f"{text})"
    if rule == "macro_f1":
        return "best macro-F1"
    if rule == "expected_fpr":
        return f"at most {100 * fpr:g} % of normal images rejected"
    return f"{rule} mask rules"
