"""From the scores of several folds and experiments to one probability per image.

Models of different folds differ in offset and scale, and an average of five varies less than any one
of them. Both would make a threshold found on single-model out-of-fold scores wrong for the average, so
fold scores are brought to a common scale first, and the average to the spread of a single model. Only
scores are used for that, never labels.
"""

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from defects.errors import UserError

LIMIT = 40.0  # log-odds beyond float64's reach of probabilities near 1


def log_odds(probability: pd.Series) -> pd.Series:
    return logit(probability.astype(float)).clip(-LIMIT, LIMIT)


def align(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Log-odds of both tables (fold, probability) on one scale: each fold's by its own held-out scores.

    Folds keep the ranking within them. Test scores of the `full` fit, which has no held-out images,
    are placed like the average of the folds, or like the held-out scores if there are no folds.
    """
    held, new = log_odds(oof["probability"]), log_odds(test["probability"])
    scales = held.groupby(oof["fold"]).apply(_scale)
    common = tuple(np.median(np.array(scales.tolist()), axis=0))
    held = _rescale(held, oof["fold"], scales, common)
    known = test["fold"].isin(scales.index)
    placed = _rescale(new[known], test.loc[known, "fold"], scales, common)
    if known.all():
        return held, placed
    target = common if placed.empty else _scale(average(test[known], placed))
    full = (
        new[~known]
        .groupby(test.loc[~known, "fold"])
        .transform(lambda part: _move(part, _scale(part), target))
    )
    return held, pd.concat([placed, full]).reindex(test.index)


def average(test: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Mean over the models of each image, by image_id, spread like one model's values."""
    mean = values.groupby(test["image_id"]).mean()
    single = values.groupby(test["fold"]).apply(lambda part: _scale(part)[1]).mean()
    center, spread = _scale(mean)
    return _move(mean, (center, spread), (center, single))


def experiment_probabilities(oof: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Probability by image_id: out of fold (one model each), and on the test images (all models)."""
    held, new = align(oof, test)
    return expit(held.set_axis(oof["image_id"])), expit(average(test, new))


def blend(members: dict[str, pd.Series]) -> pd.Series:
    """Plain mean of the experiments' probabilities, joined by image_id, never by row position.

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
    return pd.concat(members, axis=1).mean(axis=1)


def _scale(values: pd.Series) -> tuple[float, float]:
    """Median and normal-consistent median absolute deviation: a few defects do not move them."""
    center = float(values.median())
    spread = 1.4826 * float((values - center).abs().median()) or float(values.std(ddof=0)) or 1.0
    return center, spread


def _rescale(
    values: pd.Series, folds: pd.Series, scales: pd.Series, target: tuple[float, float]
) -> pd.Series:
    source = np.array(folds.map(scales).tolist()).reshape(-1, 2)
    return target[0] + (values - source[:, 0]) / source[:, 1] * target[1]


def _move(values: pd.Series, source: tuple[float, float], target: tuple[float, float]) -> pd.Series:
    return target[0] + (values - source[0]) / source[1] * target[1]
