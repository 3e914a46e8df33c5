"""Exact binomial bounds of error rates, and how many images support a bound; needs scipy.special alone."""

from bisect import bisect_left

from scipy.special import betaincinv

from defects.evaluation.claim_records import NeededImages

MOST_IMAGES = 10**12  # beyond it no number of images is looked for


def bound_rate(errors: float, images: float, confidence: float) -> float | None:
    """The one-sided upper bound of a rate by Clopper and Pearson; None without images.

    Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial". Errors and images may be fractions, as those of groups are that are worth fewer independent
    images: the binomial tail is then that of its continuous form, the incomplete beta function.
    """
    if images <= 0:
        return None
    if errors >= images:
        return 1.0
    return float(betaincinv(errors + 1, images - errors, confidence))


def count_needed(errors: float, rate: float, confidence: float) -> int:
    """The fewest independent images, `errors` of them decided wrongly, whose bound is at most `rate`."""

    def is_enough(images: int) -> bool:
        return bound_rate(errors, images, confidence) <= rate

    return bisect_left(range(MOST_IMAGES), True, lo=1, key=is_enough)


def tabulate_needed(errors: int, escape: float, false_alarm: float, confidence: float) -> list[NeededImages]:
    """A row for 0, 1, ... `errors`: how many images of both classes support the two claims."""
    rows = []
    for count in range(errors + 1):
        defects = count_needed(count, escape, confidence)
        normal = count_needed(count, false_alarm, confidence)
        rows.append(NeededImages(count, defects, normal))
    return rows
