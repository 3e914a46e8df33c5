"""From the scores of several folds and experiments to one score per image, as log-odds.

Models of different folds differ in offset and scale, and an average of five varies less than any one
of them. Both would make a threshold found on single-model out-of-fold scores wrong for the average, so
fold scores are brought to a common scale first, and the average to the spread of a single model. No
label is used for that, and of the test scores only those on the normal side, so the answers do not
depend on how many defects the test set holds.
"""

import numpy as np
import pandas as pd
from scipy.special import logit

from defects.messages import UserError

LIMIT = 40.0  # log-odds beyond float64's reach of probabilities near 1
Scale = tuple[float, float]  # centre and spread


def log_odds(probability: pd.Series) -> pd.Series:
    return logit(probability.astype(float)).clip(-LIMIT, LIMIT)


def experiment_scores(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Log-odds by image_id: out of fold (one model each), and on the test images (all models).

    Both tables have image_id, fold, probability.
    """
    held, new, common = align(oof, test)
    return held.set_axis(oof["image_id"]), average(test, new, common[0])


def align_held(oof: pd.DataFrame) -> tuple[pd.Series, dict[str, Scale], Scale]:
    """Out-of-fold log-odds on one scale, in the order of `oof`; each fold's own scale, and the common one."""
    held = log_odds(oof["probability"])
    scales = {fold: _scale(part) for fold, part in held.groupby(oof["fold"])}
    common = tuple(np.median(list(scales.values()), axis=0))
    moved = held.groupby(oof["fold"], group_keys=False)
    return moved.apply(lambda part: move(part, scales[part.name], common)), scales, common


def align(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series, Scale]:
    """Log-odds of both tables on one scale, and that scale: each fold's by its own held-out scores.

    Test scores of the `full` fit, which has no held-out images, are placed like the average of the
    folds on the same images; without folds, as if the test set had the training share of defects.
    """
    held, scales, common = align_held(oof)
    new = log_odds(test["probability"])
    folds = test["fold"].isin(scales)
    target = common
    if folds.any():
        placed = new[folds].groupby(test["fold"], group_keys=False)
        new[folds] = placed.apply(lambda part: move(part, scales[part.name], common))
        target = _scale(average(test[folds], new[folds], common[0]))
    full = new[~folds].groupby(test["fold"], group_keys=False)
    new[~folds] = full.transform(lambda part: move(part, _scale(part), target))
    return held, new, common


def average(test: pd.DataFrame, values: pd.Series, center: float) -> pd.Series:
    """Mean over the models of each image, by image_id, spread below `center` like one model's values."""
    mean = values.groupby(test["image_id"]).mean()
    single = float(np.mean([_spread_below(part, center) for _, part in values.groupby(test["fold"])]))
    return move(mean, (center, _spread_below(mean, center)), (center, single))


def check_scores(name: str, oof: pd.DataFrame, test: pd.DataFrame) -> None:
    """UserError for scores of an experiment that nothing can be made of; tables as in experiment_scores."""
    for part, table, stage in (("out-of-fold", oof, "train.py --restart"), ("test", test, "infer.py")):
        wrong = ~np.isfinite(log_odds(table["probability"]))
        if wrong.any():
            raise UserError(
                f"{name}: {wrong.sum()} {part} probabilities are no numbers from 0 to 1 (image "
                f"{table.loc[wrong, 'image_id'].iloc[0]} first): run src/{stage}, or leave it out"
            )
    if oof["probability"].nunique() == 1:
        raise UserError(f"{name}: all out-of-fold scores are the same: train it otherwise, or leave it out")


def join(members: dict[str, pd.Series]) -> pd.DataFrame:
    """A column for each experiment, joined by image_id, never by row position.

    Raises UserError naming the experiments whose images differ.
    """
    first, *others = members
    for name in others:
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
    first, *others = tables = {name: oof.set_index("image_id") for name, oof in oofs.items()}
    agreed = tables[first][["label", "fold", "group"]]
    for name in others:
        other = tables[name].reindex(agreed.index)
        wrong = ((other["fold"] != agreed["fold"]) | (other["label"] != agreed["label"])).to_numpy()
        if wrong.any():
            raise UserError(
                f"experiments {first} and {name} disagree on fold or label of {wrong.sum()} images (such as "
                f"{agreed.index[wrong][0]}): train both on the same folds.csv"
            )
    shares = agreed["label"].astype(float).groupby(agreed["fold"]).mean()
    lacking = shares[shares.isin([0.0, 1.0])]
    if len(lacking) and shares.nunique() > 1:
        fold, share = lacking.index[0], lacking.iloc[0]
        raise UserError(
            f"fold {fold} of {first} holds no {'normal' if share else 'defective'} image: lower split.folds, "
            "or correct split.group_file; then run src/split.py and train again"
        )
    return agreed


def _scale(values: pd.Series) -> Scale:
    center = float(values.median())
    return center, _spread_below(values, center)


def _spread_below(values: pd.Series, center: float) -> float:
    """Half-normal estimate of the deviation from the values below the centre, where the normal images are."""
    below = center - values[values < center]
    return 1.4826 * float(below.median()) if len(below) else 1.0


def move(values: pd.Series, source: Scale, target: Scale) -> pd.Series:
    """Values (or one value) of one scale, on another."""
    return target[0] + (values - source[0]) / source[1] * target[1]
