"""What members of a blend get wrong out of fold, where they differ, and which labels they all doubt."""

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.config_schema import ThresholdConfig
from defects.data.labels import COLUMN, class_names
from defects.evaluation.thresholds import choose_threshold


def measure_margins(images: pd.DataFrame, scores: pd.DataFrame, settings: ThresholdConfig) -> pd.DataFrame:
    """By how much `scores` (log-odds, a column for each member) exceed the thresholds, which decide at 0.

    Each column has its own thresholds: for an image the one fitted on the other folds, and with a single
    fold, which is optimistic, the one fitted on the same images. `images` (label, fold) has the rows of
    `scores`.
    """
    labels = images["label"].to_numpy(dtype=int)
    folds = images["fold"].to_numpy()
    margins = scores.copy()
    for name in scores:
        values = scores[name].to_numpy()
        for fold in np.unique(folds):
            own = folds == fold
            fitted_on = own if own.all() else ~own
            threshold = choose_threshold(labels[fitted_on], values[fitted_on], settings)
            margins.loc[own, name] = values[own] - threshold
    return margins


def measure_disagreement(scores: pd.DataFrame, predicted: pd.DataFrame) -> pd.Series:
    """How far apart the members' probabilities are, for the images that they decide differently.

    `predicted` is bool, a column for each member. The other images are left out: two probabilities may lie
    far apart on one side of two thresholds. Largest first.
    """
    probability = expit(scores)
    differ = predicted.any(axis=1) & ~predicted.all(axis=1)
    gap = probability.max(axis=1) - probability.min(axis=1)
    return gap[differ].sort_values(ascending=False, kind="stable")


def find_doubtful_labels(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [N]: whether every member is confident that an image belongs to the other class.

    Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", section 3.1): a model is confident of a class where its probability reaches the mean
    one of the images labelled so, of both classes of the more probable. `scores` [N, M]: out-of-fold
    log-odds of M members. None are suspected where only one class is there.
    """
    if len(np.unique(labels)) < 2:
        return np.zeros(len(labels), bool)
    defect = labels == 1
    probability = expit(scores)
    sure_defect = probability >= probability[defect].mean(axis=0)
    sure_normal = probability <= probability[~defect].mean(axis=0)
    both = sure_defect & sure_normal
    sure_defect &= ~both | (probability >= 0.5)
    sure_normal &= ~both | (probability < 0.5)
    return np.where(defect[:, None], sure_normal, sure_defect).all(axis=1)


def count_detected_by_kind(images: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Defects of each kind, and how many each column of `predicted` (bool) detects; empty without kinds.

    Kinds are the classes of the data set, of which an image may have several, or `kind` of images.csv.
    """
    defects = images[images["label"] == 1]
    of_kind = {name: defects[COLUMN + name] != "" for name in class_names(images)}
    if not of_kind:
        of_kind = {kind: defects["kind"] == kind for kind in sorted(set(defects["kind"]) - {""})}
    detected = predicted[images["label"] == 1]
    counts = {kind: {"defects": int(of.sum()), **detected[of].sum()} for kind, of in of_kind.items()}
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("kind")
