"""Add new normal images to a trained memory bank, and redo what depends on it."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from defects.config_schema import Config, refuse_external
from defects.data.datasets import DeviceBatches
from defects.data.fold_files import DataTables, find_duplicates, load_training_rows
from defects.data.folder_scan import list_images
from defects.files import locked, sha256
from defects.messages import UserError
from defects.models.patchcore import PatchCore
from defects.runs import UPDATE, Run
from defects.training.checkpoint import load_checkpoint, load_detector
from defects.training.fold import divide_images, write_result
from defects.training.loop import make_accelerator


def update_bank(run: Run, fold: str, images: Path, tables: DataTables) -> tuple[int, int]:
    """Put the normal images under `images` into the bank of a fold, or of `full`; calibrate and score anew.

    Returns how many patches entered and how many the bank holds. Images that are in it already are left out,
    and an interrupted update is completed first. Raises UserError for a detector without a bank, and for test
    images and images of what the fold is calibrated on or scored by: these would no longer be unseen.
    """
    config = run.config
    folder = run.fold_folder(fold)
    if not folder.exists():
        load_checkpoint(run, fold)  # says what is missing
    with locked(folder, wait=False):
        complete_update(folder)
        detector = load_detector(run, fold)
        best = load_checkpoint(run, fold)
        if not isinstance(detector, PatchCore):
            raise UserError(
                f"model.name={config.model.name} has no memory bank to add to: only patchcore has"
            )
        rows = _new_rows(config, images, best)
        if rows.empty:
            print(f"{images}: all of its images are in the bank already")
            return 0, len(detector.memory_bank)
        _refuse_test_images(config, tables.images, rows)
        data = divide_images(config, fold, tables.folds, load_training_rows(config, fold))
        data = data.suited_to(detector, config)
        _refuse_unseen_objects(config, fold, rows, pd.concat([data.inner, data.validation]))
        accelerator = make_accelerator(config.train)
        detector.to(accelerator.device).eval()
        with torch.no_grad():
            entered = detector.update(DeviceBatches(config, rows, accelerator.device, in_windows=True))
            detector.calibrate(DeviceBatches(config, data.inner_normal, accelerator.device))
        best["added_sha256"] = [*best.get("added_sha256", []), *rows["sha256"]]
        best["added_images"] = best.get("added_images", 0) + len(rows)
        # Checkpoint, scores and maps change together, whenever this is stopped: from the moment on when
        # their folder is renamed to UPDATE they count, and complete_update moves them.
        part = folder / f".{UPDATE}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            write_result(detector, run, fold, data.scored, accelerator, best, part)
            part.replace(folder / UPDATE)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        complete_update(folder)
    return entered, len(detector.memory_bank)


def complete_update(folder: Path) -> None:
    """Move the files of an update into its fold's folder; those that an interrupted one has not moved."""
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


def _refuse_test_images(config: Config, images: pd.DataFrame, new: pd.DataFrame) -> None:
    """UserError if an image of `new` is a test image, which would then be scored by its copy."""
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


def _refuse_unseen_objects(config: Config, fold: str, new: pd.DataFrame, unseen: pd.DataFrame) -> None:
    """UserError if an image of `new` is, or shows the same object as, one of the `unseen` images."""
    pairs = find_duplicates(config, pd.concat([unseen, new], ignore_index=True))
    crossing = pairs[(pairs["i"] < len(unseen)) & (pairs["j"] >= len(unseen))]
    if crossing.empty:
        return
    first = crossing.sort_values("j").iloc[0]
    raise UserError(
        f"{new['path'].iloc[first['j'] - len(unseen)]} shows what {unseen['image_id'].iloc[first['i']]} of "
        f"{config.data.name} shows, which --fold {fold} is judged by: add images of other objects"
    )
