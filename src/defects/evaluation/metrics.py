"""Metrics of images (macro-F1, AUROC) and of masks (Dice), and their confidence intervals."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import beta
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from defects.data import rle

JEFFREYS_PRIOR = 0.5  # of Jeffreys, both ways
PAIR = ["image_id", "target"]
NORMAL_QUANTILE_95 = 1.645


def macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean F1 of the two classes; a class that neither occurs nor is predicted counts 0."""
    return float(
        f1_score(labels, predicted, labels=[0, 1], average="macro", sample_weight=weights, zero_division=0)
    )


def macro_f1_of_counts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    errors = fp + fn
    smallest = np.finfo(float).tiny  # a class that neither occurs nor is predicted counts 0
    f1_defect = 2 * tp / np.maximum(2 * tp + errors, smallest)
    f1_normal = 2 * tn / np.maximum(2 * tn + errors, smallest)
    return (f1_defect + f1_normal) / 2


def share_weights(labels: np.ndarray, share: float) -> np.ndarray:
    """Weights [N] of mean 1 that give the defective images the stated share of the total."""
    own_share = labels.mean()
    if own_share in (0.0, 1.0):
        return np.ones(len(labels))
    return np.where(labels == 1, share / own_share, (1 - share) / (1 - own_share))


def rank_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """AUROC and average precision of raw scores; None where only one class is present."""
    if len(np.unique(labels)) < 2:
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(labels, scores, sample_weight=weights)),
        "average_precision": float(average_precision_score(labels, scores, sample_weight=weights)),
    }


def bootstrap(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int = 0, repeats: int = 5000
) -> np.ndarray:
    """macro-F1 [repeats, K] of K predictions 0/1 [K, N] on the same draws of whole groups."""
    outcome = 2 * np.asarray(labels, dtype=int) + predicted.astype(int)  # tn, fp, fn, tp
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((group.max() + 1, len(predicted), 4))
    for index, cells in enumerate(outcome):
        np.add.at(counts, (group, index, cells), 1)
    # Groups with equal counts are interchangeable: draw how often each kind of group occurs.
    kinds, multiplicity = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), multiplicity / len(counts), repeats)
    tn, fp, fn, tp = np.moveaxis(np.tensordot(draws, kinds, axes=1), 2, 0)
    return macro_f1_of_counts(tp, fp, fn, tn)


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
    they are few: without a single defect found it has no width at all (benchmarks/claims_coverage.py).

    `share_error` is the standard error of an estimated share. With `new_images` it is the interval of the
    macro-F1 of that many images, which varies with their draw too; without, that of infinitely many.
    """
    random = np.random.default_rng(seed)
    is_defect = labels == 1
    is_normal = labels == 0
    detected = posterior(predicted[is_defect], groups[is_defect]).rvs(draws, random_state=random)
    rejected = posterior(predicted[is_normal], groups[is_normal]).rvs(draws, random_state=random)
    expected_share = float(np.mean(labels)) if share is None else share
    shares = np.full(draws, expected_share)
    if share_error > 0:
        shares = random.normal(expected_share, share_error, draws).clip(0, 1)
    if new_images is not None:
        defects = np.rint(new_images * shares).astype(int)
        normal = new_images - defects
        shares = defects / new_images
        detected = random.binomial(defects, detected) / np.maximum(defects, 1)
        rejected = random.binomial(normal, rejected) / np.maximum(normal, 1)
    tp = shares * detected
    fp = (1 - shares) * rejected
    drawn = macro_f1_of_counts(tp, fp, shares - tp, 1 - shares - fp)
    weights = None if share is None else share_weights(labels, share)
    value = macro_f1(labels, predicted, weights)
    low, high = np.quantile(drawn, [0.05, 0.95])
    return min(float(low), value), max(float(high), value)


def posterior(predicted: np.ndarray, groups: np.ndarray):
    """Beta distribution of the share of images that are predicted defective, from 0/1 [N] of some."""
    images = effective_number(groups)
    positive = images * predicted.mean() if len(predicted) else 0.0
    return beta(JEFFREYS_PRIOR + positive, JEFFREYS_PRIOR + images - positive)


def effective_number(groups: np.ndarray) -> float:
    """Independent images that groups of siblings, alike within, are worth: (sum n)^2 / sum n^2."""
    sizes = np.unique(groups, return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def pair_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks [H, W], nonzero is defect; 1 where both are empty."""
    overlap = np.count_nonzero((predicted != 0) & (truth != 0))
    return _dice(overlap, np.count_nonzero(predicted) + np.count_nonzero(truth))


def dice_table(
    predicted: pd.DataFrame, truth: pd.DataFrame, sizes: Mapping[str, tuple[int, int]] | pd.Series
) -> pd.DataFrame:
    """image_id, target, dice, empty (whether the truth is) for every row of `truth`, in its order.

    Both are long tables (image_id, target, runs); `truth` lists every pair that counts, also the empty
    ones (`rle.all_pairs`), and a pair that `predicted` leaves out is predicted empty. `sizes` holds
    (height, width) by image_id. Raises ValueError for a predicted pair that `truth` does not list, for
    pairs listed twice, and for runs that are no mask.
    """
    true_pairs = pd.MultiIndex.from_frame(truth[PAIR])
    predicted_runs = predicted.set_index(PAIR)["runs"]
    if not (true_pairs.is_unique and predicted_runs.index.is_unique):
        raise ValueError("some pairs of image and class are listed twice")
    unknown = predicted_runs.index.difference(true_pairs)
    if len(unknown):
        raise ValueError(f"{len(unknown)} predicted pairs are not among the true ones: first {unknown[0]}")
    guesses = predicted_runs.reindex(true_pairs, fill_value="")
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
    starts, ends = rle.parse(predicted, size)
    true_starts, true_ends = rle.parse(truth, size)
    total = (ends - starts).sum() + (true_ends - true_starts).sum()
    overlap = _covered(ends, true_starts, true_ends) - _covered(starts, true_starts, true_ends)
    return _dice(overlap.sum(), total)


def _covered(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many pixels of the runs lie before each position."""
    before = np.concatenate([[0], np.cumsum(ends - starts)])
    last = np.searchsorted(starts, positions) - 1  # the last run that starts before the position
    beyond = np.where(last >= 0, np.append(ends, 0)[last] - positions, 0)
    return before[last + 1] - np.maximum(beyond, 0)


def _dice(overlap: int, total: int) -> float:
    return 2.0 * float(overlap) / float(total) if total else 1.0
