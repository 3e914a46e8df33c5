"""MVTec AD layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png.

Data sets that copy it call `good` also `ok` (BTAD) or `normal`, and letters may differ in case.
"""

from pathlib import Path

import pandas as pd

from defects.config import categories, resolve
from defects.config_data import DataConfig
from defects.data.folder_scan import list_folders
from defects.data.listing import Listing, RoleFolder, make_rows, open_folders
from defects.data.mask_assignment import MaskNotes, attach_empty_masks, attach_masks
from defects.messages import UserError, shorten_names

GOOD_NAMES = ("good", "ok", "normal", "defect-free", "defect_free", "no_defect")  # of images without a defect


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below the category's folder. Masks are called as `match_masks` says.

    The labelled test images are test images with an answer key, as the papers use them, or join the
    training side with `data.use_test_as: train` (then a classifier has defects to learn from).
    """
    root = resolve(data.root)
    inside = categories(data)
    if inside and not (root / "train").is_dir():
        raise UserError(
            f"{root} holds several categories: name one with --category ({shorten_names(inside)})"
        )
    opened = open_folders(_role_folders(data))
    masks = {folder.kind: folder for folder in opened if folder.role == "masks"}
    notes = MaskNotes(root)
    good, test = [], []
    for folder in opened:
        if folder.role == "masks":
            continue
        is_test, label = folder.kind != "", int(folder.role == "abnormal")
        table = make_rows(data, folder.images, root, "test" if is_test else "train", label, folder.kind)
        if label:
            table = attach_masks(data, table, folder, masks.get(folder.kind), notes)
        else:
            table = attach_empty_masks(table, folder, None, notes)
        (test if is_test else good).append(table)
    good, test = pd.concat(good), pd.concat(test, ignore_index=True)
    if data.use_test_as == "train":
        images = pd.concat([good, test.assign(split="train")], ignore_index=True)
        return Listing(images, folders=opened, notes=notes.lines())
    answers = test[["image_id", "label", "kind", "mask_path"]]
    hidden = test.assign(label=pd.array([None] * len(test), "Int64"), mask_path="", kind="")
    images = pd.concat([good, hidden], ignore_index=True)
    return Listing(images, answers, folders=opened, notes=notes.lines())


def _role_folders(data: DataConfig) -> list[RoleFolder]:
    root = resolve(data.root)
    good = _good_folder(root)
    kinds = list_folders(root / "test")
    if not kinds and good.is_dir():
        raise UserError(
            f"{root / 'test'} holds no folders of test images (test/good, test/<kind>): check data.root"
        )
    masks = {path.name.casefold(): path for path in list_folders(root / "ground_truth")}
    folders = [RoleFolder("normal", good, f"train/{good.name}")]
    for path in kinds:
        role = "normal" if _is_good(path) else "abnormal"
        folders.append(RoleFolder(role, path, f"test/{path.name}", path.name))
    for path in kinds:
        of_kind = masks.get(path.name.casefold())
        if of_kind and not _is_good(path):
            folders.append(RoleFolder("masks", of_kind, f"ground_truth/{of_kind.name}", path.name))
    return folders


def _good_folder(root: Path) -> Path:
    """The training images: train/good, or whatever of GOOD_NAMES it is called.

    Raises UserError if there are several.
    """
    good = [path for path in list_folders(root / "train") if _is_good(path)]
    if len(good) > 1:
        both = shorten_names(good, " and ")
        raise UserError(f"{both} may both be the normal training images: put them into one folder")
    return good[0] if good else root / "train/good"


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD_NAMES
