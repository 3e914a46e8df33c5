"""What may be claimed of a decision: records and their words, without pandas and scipy, for prediction too.

acceptance.py states them from out-of-fold predictions, bounds.py computes the bounds.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

AT_THRESHOLD = "at this threshold"  # of what a claim is; submitted masks have rules in place of a threshold


@dataclass(frozen=True)
class RateBound:
    """A share of images that is decided wrongly, and its one-sided upper bound."""

    errors: int
    images: int
    independent_images: float  # that these images are worth, which the bound is computed from
    rate: float | None  # errors / images; None without images
    upper: float | None  # None without images
    inflation: float = 1.0  # of the variance by the choice of the threshold; images are worth so much less


@dataclass(frozen=True)
class ErrorBounds:
    """Of one target; None where there is no such image, so that nothing can be said."""

    escape: RateBound | None  # defects that pass
    false_alarm: RateBound | None  # images without the defect that are rejected


@dataclass(frozen=True)
class NeededImages:
    """Independent images, by how many of them may be decided wrongly, that support two claims."""

    errors: int
    defects: int  # for the claim about escapes
    normal: int  # for the claim about false alarms


@dataclass(frozen=True)
class SampleSizes:
    """How many images support the claims of `claims.escape` and `claims.false_alarm`."""

    escape: float  # claimed rates
    false_alarm: float
    needed: tuple[NeededImages, ...]  # for 0, 1, 2, ... errors
    # Independent images to add if none of them is decided wrongly; 0: the claim holds; None: refused.
    more_defects: int | None
    more_normal: int | None


@dataclass(frozen=True)
class Claims:
    """The acceptance statement of a decision. Where it is refused there are no bounds."""

    confidence: float  # of every bound by itself
    escape: RateBound | None  # None: no defects out of fold, or refused
    false_alarm: RateBound | None  # None: no normal images out of fold, or refused
    by_class: dict[str, ErrorBounds]  # where the data set has classes of defects
    by_kind: dict[str, RateBound]  # escapes by `kind` of images.csv
    refusal: str | None  # why nothing may be claimed
    limits: tuple[str, ...]  # sentences: what the claim does not cover
    comparison: str | None  # whether training and test images can be distinguished; None: not compared
    sentence: str  # to copy: the claim, or why there is none
    sample_sizes: SampleSizes

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Claims":
        """Raises TypeError, KeyError or AttributeError for anything but the values of `to_json`."""
        sizes = values["sample_sizes"]
        needed = tuple(NeededImages(**row) for row in sizes["needed"])
        by_class = {}
        for name, bounds in values["by_class"].items():
            by_class[name] = ErrorBounds(_read_bound(bounds["escape"]), _read_bound(bounds["false_alarm"]))
        read = {
            "escape": _read_bound(values["escape"]),
            "false_alarm": _read_bound(values["false_alarm"]),
            "by_class": by_class,
            "by_kind": {name: RateBound(**bound) for name, bound in values["by_kind"].items()},
            "limits": tuple(values["limits"]),
            "sample_sizes": SampleSizes(**sizes | {"needed": needed}),
        }
        return cls(**values | read)

    def to_json(self) -> dict[str, Any]:
        """Plain values: lists in place of tuples."""
        values = asdict(self)
        values["limits"] = list(self.limits)
        values["sample_sizes"]["needed"] = list(values["sample_sizes"]["needed"])
        return values


def _read_bound(values: dict[str, Any] | None) -> RateBound | None:
    return None if values is None else RateBound(**values)


# --- words --------------------------------------------------------------------------------------------------


def format_bound(upper: float | None) -> str:
    """A bound in per cent, rounded up: `12.4 %`, `9.51 %`; without one `cannot be said`."""
    if upper is None:
        return "cannot be said"
    percent = 100 * upper
    decimals = 1 if percent >= 10 else 2
    scale = 10**decimals
    rounded = math.ceil(percent * scale - 1e-9) / scale  # 5 % stays 5 %, whatever its binary digits
    return f"{min(rounded, 100):.{decimals}f} %"


def format_confidence(confidence: float) -> str:
    """`95 %`; with as many digits as it takes not to be 100 %."""
    percent = 100 * confidence
    digits = next((digits for digits in (6, 9, 12) if float(f"{percent:.{digits}g}") < 100), 17)
    return f"{percent:.{digits}g} %"


def write_sentence(
    condition: str, confidence: float, escape: RateBound | None, false_alarm: RateBound | None
) -> str:
    """The claim as a person may copy it; without any bound, that there is one of the classes alone."""
    if escape is None and false_alarm is None:
        return "every image is taken for defective, since no normal image was scored: see the classes"
    start = f"{condition}, with {format_confidence(confidence)} confidence,"
    if escape is None:
        rejected = f"at most {format_bound(false_alarm.upper)} of normal parts are rejected"
        return f"{start} {rejected}; nothing is known of escapes, since no defect was scored out of fold"
    escapes = f"at most {format_bound(escape.upper)} of defects like these escape"
    if false_alarm is None:
        return f"{start} {escapes}; nothing is known of false alarms, since no normal image was scored"
    return f"{start} {escapes} and at most {format_bound(false_alarm.upper)} of normal parts are rejected"


def summarise_claims(claims: Claims) -> list[str]:
    """Lines for the console: the claim, what it rests on, what more images would support; then its limits."""
    lines = [f"may be claimed            {claims.sentence}"]
    if claims.refusal is None:
        observed = []
        if claims.escape is not None:
            observed.append(f"escaped {describe_bound(claims.escape)} defects")
        if claims.false_alarm is not None:
            observed.append(f"rejected {describe_bound(claims.false_alarm)} normal images")
        if observed:
            lines.append(f"  out of fold             {'; '.join(observed)}")
        for name, bounds in claims.by_class.items():
            lines.append(f"  {f'class {name}':24}{describe_class(bounds)}")
    lines.append(f"  more images             {describe_sample_sizes(claims.sample_sizes)}")
    return lines + [f"  limit                   {limit}" for limit in claims.limits]


def describe_class(bounds: ErrorBounds) -> str:
    """`at most 12.4 % escape, at most 3.00 % are rejected without it`"""
    escape = "escapes cannot be said"
    if bounds.escape is not None:
        escape = f"at most {format_bound(bounds.escape.upper)} escape"
    if bounds.false_alarm is None:
        return f"{escape}, false alarms cannot be said"
    return f"{escape}, at most {format_bound(bounds.false_alarm.upper)} are rejected without it"


def describe_bound(bound: RateBound) -> str:
    """`2 of 30`, with what siblings are worth: `2 of 30 (worth 14.1 independent)`."""
    text = f"{bound.errors:,} of {bound.images:,}"
    if bound.independent_images == bound.images:
        return text
    return f"{text} (worth {bound.independent_images:,.1f} independent)"


def describe_sample_sizes(sizes: SampleSizes) -> str:
    """How many images are to be added for the claims of the settings; where refused, how many are needed."""
    start = f"at most {100 * sizes.escape:g} % escapes and {100 * sizes.false_alarm:g} % false alarms"
    if sizes.more_defects is None:
        first = sizes.needed[0]
        return f"{start} need {first.defects:,} independent defects, {first.normal:,} normal images, no error"
    if sizes.more_defects == sizes.more_normal == 0:
        return f"{start} may be claimed already"
    return (
        f"{start} need {sizes.more_defects:,} more independent defects, {sizes.more_normal:,} more normal "
        "images, all decided rightly"
    )
