"""Another share of defects among the test images than among the training images."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from defects.evaluation.scales import fit_calibration
from defects.evaluation.thresholds import choose_threshold

STEPS = 10_000  # of EM, which creeps where the scores hardly tell the classes apart
CLOSE = 1e-9  # a step of the share that ends it


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
