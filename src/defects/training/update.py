"""Add new normal images to a trained memory bank, and redo what depends on it."""

from pathlib import Path

import pandas as pd
import torch

from defects.config import Config
from defects.data.datasets import DeviceBatches
from defects.data.external import refuse_external
from defects.data.folder_scan import list_images
from defects.data.split import find_duplicates, load_folds, load_training_rows
from defects.errors import UserError
from defects.files import locked
from defects.models.patchcore import PatchCore
from defects.training.run import load_best, load_detector, run_folder, write_result
from defects.training.sides import make_sides
from defects.training.trainer import make_accelerator
from defects.writing import sha256


def update_bank(config: Config, fold: str, images: Path) -> tuple[int, int]:
    """Put the normal images under `images` into the bank of a fold, or of `full`; calibrate and score anew.

    Returns how many patches entered and how many the bank holds. Raises UserError for a detector without
    a bank, and for images of what the fold is calibrated on or scored by: that would no longer be unseen.
    """
    detector = load_detector(config, fold)
    if not isinstance(detector, PatchCore):
        raise UserError(f"model.name={config.model.name} has no memory bank to add to: only patchcore has")
    rows = _new_rows(config, images)
    table = load_folds(config)
    sides = make_sides(config, fold, table, load_training_rows(config, fold)).learnt_by(detector, config)
    _refuse_seen(config, fold, rows, pd.concat([sides.inner, sides.held]))
    accelerator = make_accelerator(config.train)
    detector.to(accelerator.device).eval()
    with locked(run_folder(config, fold), wait=False):
        with torch.no_grad():
            entered = detector.update(DeviceBatches(config, rows, accelerator.device, in_windows=True))
            detector.calibrate(DeviceBatches(config, sides.inner_normal, accelerator.device))
        best = load_best(config, fold)
        best["added_images"] = best.get("added_images", 0) + len(rows)
        write_result(detector, config, fold, sides.held, accelerator, best)
    return entered, len(detector.memory_bank)


def _new_rows(config: Config, images: Path) -> pd.DataFrame:
    paths = [path.resolve() for path in list_images(images)]
    refuse_external(config, "FOLDER", images.resolve())
    contents = [sha256(path) for path in paths]
    return pd.DataFrame({"path": [str(path) for path in paths], "label": 0.0, "sha256": contents})


def _refuse_seen(config: Config, fold: str, new: pd.DataFrame, unseen: pd.DataFrame) -> None:
    """Raises UserError if an image of `new` is, or shows the same object as, one that is kept unseen."""
    pairs = find_duplicates(config, pd.concat([unseen, new], ignore_index=True))
    crossing = pairs[(pairs["i"] < len(unseen)) & (pairs["j"] >= len(unseen))]
    if crossing.empty:
        return
    first = crossing.sort_values("j").iloc[0]
    raise UserError(
        f"{new['path'].iloc[first['j'] - len(unseen)]} shows what {unseen['image_id'].iloc[first['i']]} of "
        f"{config.data.name} shows, which --fold {fold} is judged by: add images of other objects"
    )
