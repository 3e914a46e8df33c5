"""How far the macro-F1 of new images may lie from that of the images at hand."""

import numpy as np
from scipy.stats import beta

from defects.scoring.thresholds import macro_f1, macro_f1_of_counts

PRIOR = 0.5  # of Jeffreys, both ways


def interval(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int = 0, draws: int = 20_000
) -> tuple[float, float]:
    """90 % interval of macro-F1 on new images with the same share of defects.

    The shares of defects found and of normal images rejected are drawn from their posteriors: binomial with
    Jeffreys' prior (Brown, Cai & DasGupta 2001, "Interval estimation for a binomial proportion", section
    4.3; as there, it is widened to hold the value at hand), each group of siblings counting as the
    independent images it is worth (Kish 1965). Drawing the groups anew instead (bootstrap) is too sure where
    they are few: without a single defect found it has no width at all (measured: benchmarks/promise.py).
    """
    random, share = np.random.default_rng(seed), float(np.mean(labels))
    found, rejected = (
        posterior(predicted[labels == label], groups[labels == label]).rvs(draws, random_state=random)
        for label in (1, 0)
    )
    tp, fp = share * found, (1 - share) * rejected
    drawn = macro_f1_of_counts(tp, fp, share - tp, 1 - share - fp)
    value = macro_f1(labels, predicted)
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
