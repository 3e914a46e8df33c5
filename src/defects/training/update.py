"""Add new normal images to a trained memory bank, and redo what depends on it."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defects.config import Config
from defects.data.datasets import DeviceBatches
from defects.data.external import refuse_external
from defects.data.folder_scan import list_images
from defects.data.prepare import load_images
from defects.data.split import find_duplicates, load_folds, load_training_rows
from defects.errors import UserError
from defects.files import locked
from defects.models.patchcore import PatchCore
from defects.training.run import UPDATE, load_best, load_detector, run_folder, write_result
from defects.training.sides import make_sides
from defects.training.trainer import make_accelerator
from defects.writing import sha256


def update_bank(config: Config, fold: str, images: Path) -> tuple[int, int]:
    """Put the normal images under `images` into the bank of a fold, or of `full`; calibrate and score anew.

    Returns how many patches entered and how many the bank holds. Images that are in it already are left out,
    and an interrupted update is completed first. Raises UserError for a detector without a bank, and for
    test images and images of what the fold is calibrated on or scored by: these would no longer be unseen.
    """
    folder = run_folder(config, fold)
    if not folder.exists():
        load_best(config, fold)  # says what is missing
    with locked(folder, wait=False):
        complete_update(folder)
        detector, best = load_detector(config, fold), load_best(config, fold)
        if not isinstance(detector, PatchCore):
            raise UserError(
                f"model.name={config.model.name} has no memory bank to add to: only patchcore has"
            )
        rows = _new_rows(config, images, best)
        if rows.empty:
            print(f"{images}: all of its images are in the bank already")
            return 0, len(detector.memory_bank)
        _refuse_test_images(config, rows)
        table = load_folds(config)
        sides = make_sides(config, fold, table, load_training_rows(config, fold)).learnt_by(detector, config)
        _refuse_seen(config, fold, rows, pd.concat([sides.inner, sides.held]))
        accelerator = make_accelerator(config.train)
        detector.to(accelerator.device).eval()
        with torch.no_grad():
            entered = detector.update(DeviceBatches(config, rows, accelerator.device, in_windows=True))
            detector.calibrate(DeviceBatches(config, sides.inner_normal, accelerator.device))
        best["added_sha256"] = [*best.get("added_sha256", []), *rows["sha256"]]
        best["added_images"] = best.get("added_images", 0) + len(rows)
        _replace_result(folder, partial(write_result, detector, config, fold, sides.held, accelerator, best))
    return entered, len(detector.memory_bank)


def _replace_result(folder: Path, write: Callable[..., None]) -> None:
    """Checkpoint, scores and maps change together, whenever this is stopped: all are written aside first.

    From the moment on when their folder is renamed to UPDATE they count; `complete_update` moves them.
    """
    part = folder / f".{UPDATE}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(folder=part)
        part.replace(folder / UPDATE)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    complete_update(folder)


def complete_update(folder: Path) -> None:
    """Move the files of an update into its run folder; whatever is left of an interrupted one."""
    update = folder / UPDATE
    if not update.exists():
        return
    for path in sorted(update.iterdir()):
        path.replace(folder / path.name)
    update.rmdir()


def _new_rows(config: Config, images: Path, best: dict[str, Any]) -> pd.DataFrame:
    """The images under `images` that no update has added yet."""
    paths = [path.resolve() for path in list_images(images)]
    refuse_external(config, "FOLDER", images.resolve())
    contents = [sha256(path) for path in paths]
    rows = pd.DataFrame({"path": [str(path) for path in paths], "label": 0.0, "sha256": contents})
    return rows[~rows["sha256"].isin(best.get("added_sha256", []))].reset_index(drop=True)


def _refuse_test_images(config: Config, new: pd.DataFrame) -> None:
    """UserError if an image of `new` is a test image, which would then be scored by its copy."""
    images = load_images(config)
    test = images[images["split"] == "test"]
    copies = new[new["sha256"].isin(test["sha256"])]
    if copies.empty:
        return
    first = copies.iloc[0]
    image_id = test.loc[test["sha256"] == first["sha256"], "image_id"].iloc[0]
    raise UserError(
        f"{first['path']} is the test image {image_id} of {config.data.name} ({len(copies)} such images): "
        "take them out, or they would be scored by their own copies"
    )


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
