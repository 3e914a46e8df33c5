"""How far the macro-F1 of new images may lie from that of the images at hand."""

import numpy as np
from scipy.stats import beta

from defects.evaluation.metrics import macro_f1, macro_f1_of_counts, share_weights

PRIOR = 0.5  # of Jeffreys, both ways


def interval(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
    draws: int = 20_000,
    share: float | None = None,
    share_error: float = 0.0,
    new_images: int | None = None,
) -> tuple[float, float]:
    """90 % interval of macro-F1 on new images with a share of defects, by default that of `labels`.

    The rates of defects found and of normal images rejected are drawn from their posteriors: binomial with
    Jeffreys' prior (Brown, Cai & DasGupta 2001, "Interval estimation for a binomial proportion", section
    4.3; as there, it is widened to hold the value at hand), each group of siblings counting as the
    independent images it is worth (Kish 1965). Drawing the groups anew instead (bootstrap) is too sure where
    they are few: without a single defect found it has no width at all (benchmarks/interval_coverage.py).

    `share_error` is the standard error of an estimated share. With `new_images` it is the interval of the
    macro-F1 of that many images, which varies with their draw too; without, that of infinitely many.
    """
    random = np.random.default_rng(seed)
    found, rejected = (
        posterior(predicted[labels == label], groups[labels == label]).rvs(draws, random_state=random)
        for label in (1, 0)
    )
    expected_share = float(np.mean(labels)) if share is None else share
    shares = np.full(draws, expected_share)
    if share_error > 0:
        shares = random.normal(expected_share, share_error, draws).clip(0, 1)
    if new_images is not None:
        defects = np.rint(new_images * shares).astype(int)
        normal = new_images - defects
        shares = defects / new_images
        found = random.binomial(defects, found) / np.maximum(defects, 1)
        rejected = random.binomial(normal, rejected) / np.maximum(normal, 1)
    tp, fp = shares * found, (1 - shares) * rejected
    drawn = macro_f1_of_counts(tp, fp, shares - tp, 1 - shares - fp)
    weights = None if share is None else share_weights(labels, share)
    value = macro_f1(labels, predicted, weights)
    low, high = np.quantile(drawn, [0.05, 0.95])
    return min(float(low), value), max(float(high), value)


def posterior(called: np.ndarray, groups: np.ndarray):
    """Beta distribution of the share of images that are called defective, from 0/1 [N] of some."""
    images = effective_number(groups)
    positive = images * called.mean() if len(called) else 0.0
    return beta(PRIOR + positive, PRIOR + images - positive)


def effective_number(groups: np.ndarray) -> float:
    """Independent images that groups of siblings, alike within, are worth: (sum n)^2 / sum n^2."""
    sizes = np.unique(groups, return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0
