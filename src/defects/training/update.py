"""Add new normal images to a trained memory bank, and redo what depends on it."""

from pathlib import Path

import pandas as pd
import torch

from defects.config import Config
from defects.data.datasets import DeviceBatches
from defects.data.external import refuse_external
from defects.data.images import list_images
from defects.data.split import load_folds, load_training_rows
from defects.errors import UserError
from defects.files import locked, sha256
from defects.models.patchcore import PatchCore
from defects.training.run import load_best, load_detector, run_folder, write_result
from defects.training.sides import make_sides
from defects.training.trainer import make_accelerator


def update_bank(config: Config, fold: str, images: Path) -> tuple[int, int]:
    """Put the normal images under `images` into the bank of a fold, or of `full`; calibrate and score anew.

    Returns how many patches entered and how many the bank holds. Raises UserError for a detector without
    a bank, and for images that the data set already has: held-out ones among them would be known twice.
    """
    detector = load_detector(config, fold)
    if not isinstance(detector, PatchCore):
        raise UserError(f"model.name={config.model.name} has no memory bank to add to: only patchcore has")
    rows = _new_rows(config, images)
    table = load_folds(config)
    sides = make_sides(config, fold, table, load_training_rows(config, fold)).learnt_by(detector, config)
    accelerator = make_accelerator(config.train)
    detector.to(accelerator.device).eval()
    with locked(run_folder(config, fold), wait=False):
        with torch.no_grad():
            entered = detector.update(DeviceBatches(config, rows, accelerator.device))
            detector.calibrate(DeviceBatches(config, sides.inner_normal, accelerator.device))
        best = load_best(config, fold)
        best["added_images"] = best.get("added_images", 0) + len(rows)
        write_result(detector, config, fold, sides.held, accelerator, best)
    return entered, len(detector.memory_bank)


def _new_rows(config: Config, images: Path) -> pd.DataFrame:
    paths = [path.resolve() for path in list_images(images)]
    refuse_external(config, "FOLDER", images.resolve())
    known = load_folds(config).set_index("sha256")["image_id"]
    for path in paths:
        content = sha256(path)
        if content in known.index:
            same = known[[content]].iloc[0]
            raise UserError(f"{path} is {same} of {config.data.name}: add images that the data set lacks")
    return pd.DataFrame({"path": [str(path) for path in paths], "label": 0.0})
