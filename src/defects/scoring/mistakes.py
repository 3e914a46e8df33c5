"""What members of a blend get wrong out of fold, where they differ, and which labels they all doubt."""

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.data.labels import COLUMN, class_names
from defects.scoring.thresholds import choose_threshold, nested_predictions


def called_defective(images: pd.DataFrame, scores: pd.DataFrame, rule: str, fpr: float) -> pd.DataFrame:
    """bool, of the shape of `scores` (log-odds, a column for each member), which has the rows of `images`.

    Each column has its own thresholds: for an image the one fitted on the other folds, and with a single
    fold, which flatters, the one fitted on the same images. `images` has label and fold.
    """
    labels, folds = images["label"].to_numpy(dtype=int), images["fold"].to_numpy()

    def call(values: np.ndarray) -> np.ndarray:
        nested = nested_predictions(labels, values, folds, rule, fpr)
        return values >= choose_threshold(labels, values, rule, fpr) if nested is None else nested == 1

    return scores.apply(lambda column: call(column.to_numpy()))


def disagreement(scores: pd.DataFrame, called: pd.DataFrame) -> pd.Series:
    """How far apart the members' probabilities are, for those images that members call differently.

    The others are left out: two probabilities may lie far apart on one side of two thresholds. Largest first.
    """
    probability = expit(scores)
    differ = called.any(axis=1) & ~called.all(axis=1)
    gap = probability.max(axis=1) - probability.min(axis=1)
    return gap[differ].sort_values(ascending=False, kind="stable")


def suspected_labels(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """bool [N]: whether every member is confident that an image belongs to the other class.

    Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", section 3.1): a model is confident of a class where its probability reaches the mean
    one of the images labelled so, of both classes of the more probable. `scores` [N, M]: out-of-fold
    log-odds of M members. None are suspected where only one class is there.
    """
    if len(np.unique(labels)) < 2:
        return np.zeros(len(labels), bool)
    defect, probability = labels == 1, expit(scores)
    sure_defect = probability >= probability[defect].mean(axis=0)
    sure_normal = probability <= probability[~defect].mean(axis=0)
    both = sure_defect & sure_normal
    sure_defect &= ~both | (probability >= 0.5)
    sure_normal &= ~both | (probability < 0.5)
    return np.where(defect[:, None], sure_normal, sure_defect).all(axis=1)


def found_by_kind(images: pd.DataFrame, called: pd.DataFrame) -> pd.DataFrame:
    """Defects of each kind, and how many of them each column of `called` finds; empty without kinds.

    Kinds are the classes of the data set, of which an image may have several, or `kind` of images.csv.
    """
    defects = images[images["label"] == 1]
    of_kind = {name: defects[COLUMN + name] != "" for name in class_names(images)}
    if not of_kind:
        of_kind = {kind: defects["kind"] == kind for kind in sorted(set(defects["kind"]) - {""})}
    called = called[images["label"] == 1]
    found = {kind: {"defects": int(of.sum()), **called[of].sum()} for kind, of in of_kind.items()}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("kind")
