"""The Severstal metric: the mean Dice coefficient over all pairs of image and class, empty ones included."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from defects.data import rle

PAIR = ["image_id", "target"]
NORMAL_QUANTILE_95 = 1.645


def pair_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks [H, W], nonzero is defect; 1 where both are empty."""
    predicted, truth = predicted != 0, truth != 0
    return _dice(np.count_nonzero(predicted & truth), np.count_nonzero(predicted) + np.count_nonzero(truth))


def dice_table(
    predicted: pd.DataFrame, truth: pd.DataFrame, sizes: Mapping[str, tuple[int, int]] | pd.Series
) -> pd.DataFrame:
    """image_id, target, dice, empty (whether the truth is) for every row of `truth`, in its order.

    Both are long tables (image_id, target, runs); `truth` lists every pair that counts, also the empty
    ones (`rle.all_pairs`), and a pair that `predicted` leaves out is predicted empty. `sizes` holds
    (height, width) by image_id. Raises ValueError for a predicted pair that `truth` does not list, for
    pairs listed twice, and for runs that are no mask.
    """
    wanted = pd.MultiIndex.from_frame(truth[PAIR])
    found = predicted.set_index(PAIR)["runs"]
    if not (wanted.is_unique and found.index.is_unique):
        raise ValueError("some pairs of image and class are listed twice")
    unknown = found.index.difference(wanted)
    if len(unknown):
        raise ValueError(f"{len(unknown)} predicted pairs are not among the true ones: first {unknown[0]}")
    guesses = found.reindex(wanted, fill_value="")
    rows = zip(guesses, truth["runs"], truth["image_id"], strict=True)
    dice = [_runs_dice(guess, runs, sizes[name]) if guess or runs else 1.0 for guess, runs, name in rows]
    return truth[PAIR].assign(dice=np.array(dice, float), empty=truth["runs"] == "")


def mean_dice(table: pd.DataFrame) -> dict:
    """Means of a `dice_table`: dice, dice_non_empty (None if all are empty), pairs, non_empty; the same by
    class under `classes`."""
    return _means(table) | {"classes": {name: _means(rows) for name, rows in table.groupby("target")}}


def dice_interval(table: pd.DataFrame, groups: pd.Series, new_images: int) -> tuple[float, float] | None:
    """90 % interval of the mean Dice on `new_images` images, from a `dice_table` of others.

    `groups` by image_id: siblings count as one. Normal approximation with the standard error of a ratio of
    group totals (Cochran 1977, "Sampling Techniques", section 2.11), widened by the draw of the new images.
    None for a single group.
    """
    pairs = table.groupby(table["image_id"].map(groups))["dice"].agg(["sum", "count"])
    if len(pairs) < 2:
        return None
    mean = float(table["dice"].mean())
    residuals = pairs["sum"] - mean * pairs["count"]
    variance = (residuals**2).sum() * len(pairs) / (len(pairs) - 1) / len(table) ** 2
    variance *= 1 + table["image_id"].nunique() / new_images
    half_width = NORMAL_QUANTILE_95 * float(np.sqrt(variance))
    return max(mean - half_width, 0.0), min(mean + half_width, 1.0)


def _means(table: pd.DataFrame) -> dict:
    marked = table.loc[~table["empty"], "dice"]
    return {
        "dice": float(table["dice"].mean()),
        "dice_non_empty": float(marked.mean()) if len(marked) else None,
        "pairs": len(table),
        "non_empty": len(marked),
    }


def _runs_dice(predicted: str, truth: str, size: tuple[int, int]) -> float:
    (starts, ends), (others, other_ends) = rle.parse(predicted, size), rle.parse(truth, size)
    total = (ends - starts).sum() + (other_ends - others).sum()
    overlap = _covered(ends, others, other_ends) - _covered(starts, others, other_ends)
    return _dice(overlap.sum(), total)


def _covered(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many pixels of the runs lie before each position."""
    before = np.concatenate([[0], np.cumsum(ends - starts)])
    last = np.searchsorted(starts, positions) - 1  # the last run that starts before the position
    beyond = np.where(last >= 0, np.append(ends, 0)[last] - positions, 0)
    return before[last + 1] - np.maximum(beyond, 0)


def _dice(overlap: int, total: int) -> float:
    return 2.0 * float(overlap) / float(total) if total else 1.0
