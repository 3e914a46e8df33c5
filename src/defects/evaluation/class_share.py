"""The share of defects among new images, from their scores: by EM, and by counting as a check on it."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

EM_STEPS = 10_000  # EM creeps where the scores hardly tell the classes apart
EM_TOLERANCE = 1e-9  # a step of the share that ends it


class CountedShare(NamedTuple):
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
        for _ in range(EM_STEPS):
            previous = share
            shift = logit(share) - logit(training_share)
            share = float(expit(log_odds + shift).mean())
            if abs(share - previous) < EM_TOLERANCE:
                break
    return share


def count_share(labels: np.ndarray, predicted: np.ndarray, new_predicted: np.ndarray) -> CountedShare | None:
    """The share of defects by counting the predicted ones of the test images, corrected by the known errors.

    `labels` and `predicted` 0/1 [N] of out-of-fold images, `new_predicted` [T]. Cruder than EM, but it needs
    no calibration: a check on it. None where as many normal images are predicted defective as defects.
    """
    true_rate = predicted[labels == 1].mean()
    false_rate = predicted[labels == 0].mean()
    new_rate = new_predicted.mean()
    if true_rate <= false_rate:
        return None
    share = float(np.clip((new_rate - false_rate) / (true_rate - false_rate), 0, 1))
    weighted_rates = (
        (new_rate, 1.0, len(new_predicted)),
        (true_rate, share, (labels == 1).sum()),
        (false_rate, 1 - share, (labels == 0).sum()),
    )
    variance = 0.0
    for rate, weight, images in weighted_rates:
        smoothed = (rate * images + 0.5) / (images + 1)  # a rate of 0 or 1 is not known to be exactly that
        variance += weight**2 * (smoothed * (1 - smoothed)) / images
    return CountedShare(share, float(np.sqrt(variance) / (true_rate - false_rate)))


def find_doubt(share: float, count: CountedShare | None, images: int) -> str | None:
    """Why EM's share of `images` is not to be trusted; None if nothing speaks against it."""
    if not 1 <= share * images <= images - 1:
        return f"it ran to the edge: {share * images:.1f} of {images} images"
    if count is None:
        return "the scores do not tell defects from normal images"
    if abs(share - count.share) > 2 * count.error:
        return f"counting says {count.share:.1%} ± {count.error:.1%}"
    return None
