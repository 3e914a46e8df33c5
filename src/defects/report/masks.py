"""Masks that a single experiment makes of its held-out images by the untuned rule, and their Dice."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from defects.config import Config
from defects.report import page
from defects.scoring.dice import pair_dice
from defects.scoring.mask_rules import Rule, to_mask
from defects.scoring.masks import Candidate
from defects.scoring.pixels import Maps
from defects.submission.masks import candidates
from defects.training.run import OOF_MAPS, run_folder


def held_masks(run: Config, rows: pd.DataFrame) -> Iterator[tuple[Candidate, np.ndarray]]:
    """Image and class of `rows` (of oof.csv), with their mask bool [H, W] by the untuned rule."""
    for each in candidates(run, {run.experiment: run}, {run.experiment: rows}):
        yield each, to_mask(each.probabilities, each.label, each.truth.shape, Rule())


def held_dice(run: Config, rows: pd.DataFrame) -> pd.DataFrame | None:
    """image_id, target, fold, dice, empty (whether the truth is) and pixels (marked, or missing if nothing
    is) of each pair of image and class.

    `rows` are those of oof.csv; None for an experiment that tells no classes apart, or without maps.
    """
    rows = rows[rows["target"].isin(run.data.classes)]
    folds = rows["fold"].unique()
    if not (len(folds) and all(len(Maps(run_folder(run, fold) / OOF_MAPS)) for fold in folds)):
        return None
    found = []
    for each, mask in held_masks(run, rows):
        pixels = np.count_nonzero(mask) or np.count_nonzero(each.truth)
        dice = pair_dice(mask, each.truth)
        found.append((each.image_id, each.target, each.fold, dice, not each.truth.any(), pixels))
    return pd.DataFrame(found, columns=["image_id", "target", "fold", "dice", "empty", "pixels"])


def dice_text(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each class of `held_dice`, and for all together, as texts."""
    parts = {f"class {name}": rows for name, rows in table.groupby("target", sort=False)} | {"all": table}
    return pd.DataFrame.from_dict({name: _texts(rows) for name, rows in parts.items()}, orient="index")


def _texts(rows: pd.DataFrame) -> dict[str, str]:
    marked, empty = rows[~rows["empty"]], rows[rows["empty"]]
    return {
        "pairs": f"{len(rows):,}",
        "not empty": f"{len(marked):,}",
        "Dice, all pairs": with_spread(rows),
        "Dice, not empty": with_spread(marked),
        "missed": f"{(marked['dice'] == 0).sum():,} of {len(marked):,}",
        "false alarms": f"{(empty['dice'] == 0).sum():,} of {len(empty):,}",
    }


def with_spread(rows: pd.DataFrame) -> str:
    """`0.912 ± 0.013`: mean Dice, and the standard deviation of the folds' means."""
    folds = rows.groupby("fold")["dice"].mean()
    spread = f" ± {folds.std():.3f}" if len(folds) > 1 else ""
    return page.shown(rows["dice"].mean()) + spread
