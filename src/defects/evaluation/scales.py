"""Scores of folds and of experiments as log-odds on one scale.

Models of different folds differ in offset and scale, and an average of five varies less than any one
of them. Both would make a threshold fitted on single-model out-of-fold scores wrong for the average, so
fold scores are brought to a common scale first, and the average to the spread of a single model. No
label is used for that, and of the test scores only those on the normal side, so the answers do not
depend on how many defects the test set holds. Experiments are then calibrated by their out-of-fold labels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from defects.evaluation.display_scales import MAX_LOG_ODDS
from defects.messages import UserError

MIN_SLOPE = 1e-3  # log-odds per standard deviation: a member without information gets next to no influence

CenterSpread = tuple[float, float]
ScoreScale = Callable[[np.ndarray], np.ndarray]  # [N] -> [N], increasing


# --- folds of one experiment -------------------------------------------------------------------------------


def log_odds(probability: pd.Series) -> pd.Series:
    return logit(probability.astype(float)).clip(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def compute_run_scores(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Log-odds by image_id: out of fold (one model each), and on the test images (all models).

    Both tables have image_id, fold, probability.
    """
    oof_scores, test_scores, common = align(oof, test)
    return oof_scores.set_axis(oof["image_id"]), average_models(test, test_scores, common[0])


def align_oof(oof: pd.DataFrame) -> tuple[pd.Series, dict[str, CenterSpread], CenterSpread]:
    """Out-of-fold log-odds on one scale, in the order of `oof`; each fold's own scale, and the common one."""
    scores = log_odds(oof["probability"])
    scales = {fold: measure_scale(part) for fold, part in scores.groupby(oof["fold"])}
    common = tuple(np.median(list(scales.values()), axis=0))
    by_fold = scores.groupby(oof["fold"], group_keys=False)
    return by_fold.apply(lambda part: rescale(part, scales[part.name], common)), scales, common


def align(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series, CenterSpread]:
    """Log-odds of both tables on one scale, and that scale: each fold's by its own out-of-fold scores.

    Test scores of the `full` fit, which has no out-of-fold images, are placed like the average of the
    folds on the same images; without folds, as if the test set had the training share of defects.
    """
    oof_scores, scales, common = align_oof(oof)
    test_scores = log_odds(test["probability"])
    is_of_fold = test["fold"].isin(scales)
    target = common
    if is_of_fold.any():
        by_fold = test_scores[is_of_fold].groupby(test["fold"], group_keys=False)
        test_scores[is_of_fold] = by_fold.apply(lambda part: rescale(part, scales[part.name], common))
        target = measure_scale(average_models(test[is_of_fold], test_scores[is_of_fold], common[0]))
    full = test_scores[~is_of_fold].groupby(test["fold"], group_keys=False)
    test_scores[~is_of_fold] = full.transform(lambda part: rescale(part, measure_scale(part), target))
    return oof_scores, test_scores, common


def average_models(test: pd.DataFrame, values: pd.Series, center: float) -> pd.Series:
    """Mean over the models of each image, by image_id, spread below `center` like one model's values."""
    mean = values.groupby(test["image_id"]).mean()
    spreads = [measure_spread_below(part, center) for _, part in values.groupby(test["fold"])]
    return rescale(mean, (center, measure_spread_below(mean, center)), (center, float(np.mean(spreads))))


def measure_scale(values: pd.Series) -> CenterSpread:
    center = float(values.median())
    return center, measure_spread_below(values, center)


def measure_spread_below(values: pd.Series, center: float) -> float:
    """Half-normal estimate of the deviation from the values below the centre, where the normal images are."""
    below = center - values[values < center]
    return 1.4826 * float(below.median()) if len(below) else 1.0


def rescale(values: pd.Series, source: CenterSpread, target: CenterSpread) -> pd.Series:
    """Values (or one value) of one scale, on another."""
    return target[0] + (values - source[0]) / source[1] * target[1]


# --- several experiments -----------------------------------------------------------------------------------


def check_scores(name: str, oof: pd.DataFrame, test: pd.DataFrame) -> None:
    """UserError for scores of an experiment that cannot be used; tables as in compute_run_scores."""
    for part, table, stage in (("out-of-fold", oof, "train.py --restart"), ("test", test, "infer.py")):
        is_wrong = ~np.isfinite(log_odds(table["probability"]))
        if is_wrong.any():
            raise UserError(
                f"{name}: {is_wrong.sum()} {part} probabilities are no numbers from 0 to 1 (image "
                f"{table.loc[is_wrong, 'image_id'].iloc[0]} first): run src/{stage}, or leave it out"
            )
    if oof["probability"].nunique() == 1:
        raise UserError(f"{name}: all out-of-fold scores are the same: train it otherwise, or leave it out")


def join_scores(members: dict[str, pd.Series]) -> pd.DataFrame:
    """A column for each experiment, joined by image_id, never by row position.

    Raises UserError naming the experiments whose images differ.
    """
    first, *later = members
    for name in later:
        differing = members[first].index.symmetric_difference(members[name].index)
        if len(differing):
            raise UserError(
                f"experiments {first} and {name} scored different images ({len(differing)}, such as "
                f"{differing[0]}): train and infer both on the same data and folds"
            )
    return pd.concat(members, axis=1)


def join_images(oofs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """label, fold, group by image_id, on which all experiments agree (image_id, label, fold, group each).

    Raises UserError if they do not, or if a fold holds one class only although there are two.
    """
    tables = {name: oof.set_index("image_id") for name, oof in oofs.items()}
    first, *later = tables
    agreed = tables[first][["label", "fold", "group"]]
    for name in later:
        table = tables[name].reindex(agreed.index)
        is_wrong = ((table["fold"] != agreed["fold"]) | (table["label"] != agreed["label"])).to_numpy()
        if is_wrong.any():
            raise UserError(
                f"experiments {first} and {name} disagree on fold or label of {is_wrong.sum()} images (such "
                f"as {agreed.index[is_wrong][0]}): train both on the same folds.csv"
            )
    shares = agreed["label"].astype(float).groupby(agreed["fold"]).mean()
    lacking = shares[shares.isin([0.0, 1.0])]
    if len(lacking) and shares.nunique() > 1:
        kind = "normal" if lacking.iloc[0] else "defective"
        raise UserError(
            f"fold {lacking.index[0]} of {first} holds no {kind} image: lower split.folds, "
            "or correct split.group_file; then run src/split.py and train again"
        )
    return agreed


class Calibration(NamedTuple):
    """Log-odds of a defect, at the training share, as a straight line over a score."""

    slope: float
    offset: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return self.offset + self.slope * scores


def fit_calibration(labels: np.ndarray, scores: np.ndarray) -> Calibration:
    """Logistic calibration (Platt 1999) of one score [N]; needs both classes.

    Classes are not balanced, so that probabilities mean something. The slope is that of standardised scores,
    with a standard normal prior: thirty defects that are separated perfectly leave it finite. It is
    never negative: a calibration does not change the order.
    """
    center = scores.mean()
    spread = scores.std() or 1.0
    model = LogisticRegression(solver="newton-cholesky").fit(((scores - center) / spread)[:, None], labels)
    slope = float(model.coef_[0, 0])
    offset = float(model.intercept_[0])
    if slope < MIN_SLOPE:
        slope = MIN_SLOPE
        offset = float(logit(labels.mean()))
    return Calibration(slope / spread, offset - slope * center / spread)


class Ranks(NamedTuple):
    """Log-odds of the rank among out-of-fold images, for members without both classes to calibrate on.

    Both lists are sorted. A score is placed among the normal images: how many defects there are does not
    matter. Above and between them the defects, which together count as one normal image, keep their order.
    Over members these log-odds add up much as Fisher combines p-values.
    """

    normal: np.ndarray
    defects: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        below = _count_below(self.normal, scores)
        total = len(self.normal) + 1
        if len(self.defects):
            below = below + _count_below(self.defects, scores) / len(self.defects)
            total += 1
        return logit((below + 0.5) / total)


def fit_ranks(labels: np.ndarray, scores: np.ndarray) -> Ranks:
    """Of one score [N]; invariant to any increasing transform of it."""
    return Ranks(np.sort(scores[labels == 0]), np.sort(scores[labels == 1]))


def _count_below(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many of `ordered` lie below each score; of those equal to it half."""
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2
