"""Out-of-fold scores drawn for tests of blending, scales and thresholds."""

import numpy as np

from defects.evaluation.blend import OutOfFoldScores


def draw_members(seed, worths, images=300, defects=30, folds=3):
    """Members whose scores of defects lie `worths` deviations above those of normal images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) < defects).astype(int)
    scores = rng.normal(size=(images, len(worths))) + labels[:, None] * np.array(worths)
    fold = np.zeros(images, dtype=int)
    for label in (0, 1):
        fold[labels == label] = np.arange((labels == label).sum()) % folds
    return OutOfFoldScores(labels, scores, fold.astype(str), np.arange(images))
