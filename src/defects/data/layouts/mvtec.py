"""MVTec AD layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png.

Data sets that copy it call `good` also `ok` (BTAD) or `normal`, and letters may differ in case.
"""

from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, categories, resolve
from defects.data.folder_scan import list_folders
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_empty_masks,
    attach_masks,
    make_rows,
    open_folders,
)
from defects.messages import UserError, shorten_names

GOOD_NAMES = ("good", "ok", "normal", "defect-free", "defect_free", "no_defect")  # of images without a defect


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below the category's folder. Masks carry their image's name, as `match_masks` says.

    The labelled test images are test images with an answer key, as the papers use them, or join the
    training side with `data.use_test_as: train` (then a classifier has defects to learn from).
    """
    root = resolve(data.root)
    names = categories(data)
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
    train = pd.concat(tables["train"])
    test = pd.concat(tables["test"], ignore_index=True)
    if data.use_test_as == "train":
        images = pd.concat([train, test.assign(split="train")], ignore_index=True)
        return Listing(images, folders=opened, notes=notes.lines())
    answers = test[["image_id", "label", "kind", "mask_path"]]
    hidden = test.assign(label=pd.array([None] * len(test), "Int64"), mask_path="", kind="")
    images = pd.concat([train, hidden], ignore_index=True)
    return Listing(images, answers, folders=opened, notes=notes.lines())


def _role_folders(data: DataConfig) -> list[RoleFolder]:
    """The training images, train/good or whatever of GOOD_NAMES it is; test/<kind>; ground_truth/<kind>.

    Raises UserError if several folders may be the training images, and without test images.
    """
    root = resolve(data.root)
    good_folders = [path for path in list_folders(root / "train") if _is_good(path)]
    if len(good_folders) > 1:
        names = shorten_names(good_folders, " and ")
        raise UserError(f"{names} may both be the normal training images: put them into one folder")
    good = good_folders[0] if good_folders else root / "train/good"
    kinds = list_folders(root / "test")
    if not kinds and good.is_dir():
        raise UserError(
            f"{root / 'test'} holds no folders of test images (test/good, test/<kind>): check data.root"
        )
    mask_folders = {path.name.casefold(): path for path in list_folders(root / "ground_truth")}
    folders = [RoleFolder("normal", good, f"train/{good.name}")]
    for path in kinds:
        role = "normal" if _is_good(path) else "abnormal"
        folders.append(RoleFolder(role, path, f"test/{path.name}", path.name))
    for path in kinds:
        masks = mask_folders.get(path.name.casefold())
        if masks and not _is_good(path):
            folders.append(RoleFolder("masks", masks, f"ground_truth/{masks.name}", path.name))
    return folders


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD_NAMES
