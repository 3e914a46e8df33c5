"""From the scores of several folds and experiments to one score per image, as log-odds.

Models of different folds differ in offset and scale, and an average of five varies less than any one
of them. Both would make a threshold found on single-model out-of-fold scores wrong for the average, so
fold scores are brought to a common scale first, and the average to the spread of a single model. No
label is used for that, and of the test scores only those on the normal side, so the answers do not
depend on how many defects the test set holds.
"""

import numpy as np
import pandas as pd
from scipy.special import log_expit, logit, logsumexp

from defects.errors import UserError

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
    return moved.apply(lambda part: _move(part, scales[part.name], common)), scales, common


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
        new[folds] = placed.apply(lambda part: _move(part, scales[part.name], common))
        target = _scale(average(test[folds], new[folds], common[0]))
    full = new[~folds].groupby(test["fold"], group_keys=False)
    new[~folds] = full.transform(lambda part: _move(part, _scale(part), target))
    return held, new, common


def average(test: pd.DataFrame, values: pd.Series, center: float) -> pd.Series:
    """Mean over the models of each image, by image_id, spread below `center` like one model's values."""
    mean = values.groupby(test["image_id"]).mean()
    single = float(np.mean([_spread_below(part, center) for _, part in values.groupby(test["fold"])]))
    return _move(mean, (center, _spread_below(mean, center)), (center, single))


def blend(members: dict[str, pd.Series]) -> pd.Series:
    """Log-odds of the mean of the experiments' probabilities, joined by image_id, never by row position.

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
    table = pd.concat(members, axis=1)
    # In logarithms: probabilities within 1e-16 of 1 stay in order.
    mean = logsumexp(log_expit(table), axis=1) - logsumexp(log_expit(-table), axis=1)
    return pd.Series(mean, table.index)


def _scale(values: pd.Series) -> Scale:
    center = float(values.median())
    return center, _spread_below(values, center)


def _spread_below(values: pd.Series, center: float) -> float:
    """Half-normal estimate of the deviation from the values below the centre, where the normal images are."""
    below = center - values[values < center]
    return 1.4826 * float(below.median()) if len(below) else 1.0


def _move(values: pd.Series, source: Scale, target: Scale) -> pd.Series:
    return target[0] + (values - source[0]) / source[1] * target[1]
