"""MVTec AD layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png.

Data sets that copy it call `good` also `ok` (BTAD) or `normal`, and letters may differ in case. MVTec LOCO
has a folder of masks for each image, and validation/good. MVTec AD 2 has validation/good, test_public with
ground_truth in it, and test images without labels.
"""

from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import count_image_files, list_categories, list_folders
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_empty_masks,
    attach_masks,
    below,
    make_rows,
    open_folders,
    separate_test,
)
from defects.messages import UserError, shorten_names

GOOD_NAMES = ("good", "ok", "normal", "defect-free", "defect_free", "no_defect")  # of images without a defect
GROUND_TRUTH = "ground_truth"
UNLABELLED_FOLDERS = ("test_private", "test_private_mixed")  # MVTec AD 2


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below the category's folder. Masks carry their image's name, as `match_masks` says.

    The labelled test images are test images with an answer key, as the papers use them, or join the
    training side with `data.use_test_as: train` (then a classifier has defects to learn from). Normal images
    in `validation` are training images: thresholds are chosen out of fold.
    """
    root = resolve(data.root)
    names = list_categories(root)
    if names and not (root / "train").is_dir():
        raise UserError(f"{root} holds several categories: name one with --category ({shorten_names(names)})")
    opened = open_folders(_role_folders(data))
    masks = {folder.kind: folder for folder in opened if folder.role == "masks"}
    notes = MaskNotes(root)
    tables = {"train": [], "test": []}
    for folder in opened:
        if folder.role == "masks":
            continue
        split = "test" if folder.kind else "train"
        label = int(folder.role == "abnormal")
        table = make_rows(data, folder.images, root, split, label, folder.kind)
        if label:
            table = attach_masks(data, table, folder, masks.get(folder.kind), notes)
        else:
            table = attach_empty_masks(table, folder, None, notes)
        tables[split].append(table)
    lines = notes.lines() + _note_unlabelled(root)
    joined = {split: pd.concat(parts, ignore_index=True) for split, parts in tables.items()}
    images, answers = separate_test(joined, data.use_test_as)
    return Listing(images, answers, folders=opened, notes=lines)


def _role_folders(data: DataConfig) -> list[RoleFolder]:
    """Those of normal training images, then the kinds of test images, then their masks.

    Raises UserError without test images.
    """
    root = resolve(data.root)
    folders = [_find_good(root / "train") or RoleFolder("normal", root / "train/good", "train/good")]
    validation = _find_good(root / "validation")
    if validation is not None:
        folders.append(validation)
    test = root / "test"
    if not test.is_dir() and (root / "test_public").is_dir():
        test = root / "test_public"
    kinds = [path for path in list_folders(test) if path.name.casefold() != GROUND_TRUTH]
    if not kinds and folders[0].path.is_dir():
        raise UserError(f"{test} holds no folders of test images (test/good, test/<kind>): check data.root")
    mask_folders = {}
    for ground_truth in (test / GROUND_TRUTH, root / GROUND_TRUTH):
        for path in list_folders(ground_truth):
            mask_folders[path.name.casefold()] = path
    for path in kinds:
        role = "normal" if _is_good(path) else "abnormal"
        folders.append(RoleFolder(role, path, below(path, root), path.name))
    for path in kinds:
        masks = mask_folders.get(path.name.casefold())
        if masks and not _is_good(path):
            folders.append(RoleFolder("masks", masks, below(masks, root), path.name))
    return folders


def _find_good(split: Path) -> RoleFolder | None:
    """The folder of normal images in train or validation, whatever of GOOD_NAMES it is; None without one.

    Raises UserError if several folders may be meant.
    """
    good_folders = [path for path in list_folders(split) if _is_good(path)]
    if len(good_folders) > 1:
        names = shorten_names(good_folders, " and ")
        raise UserError(f"{names} may both be the normal training images: put them into one folder")
    if not good_folders:
        return None
    return RoleFolder("normal", good_folders[0], f"{split.name}/{good_folders[0].name}")


def _note_unlabelled(root: Path) -> list[str]:
    """A line for each folder of test images whose labels are not public."""
    lines = []
    for name in UNLABELLED_FOLDERS:
        if (root / name).is_dir():
            count = count_image_files(root / name)
            lines.append(f"{count} images of {name} have no labels: left out, src/predict.py scores them")
    return lines


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD_NAMES
