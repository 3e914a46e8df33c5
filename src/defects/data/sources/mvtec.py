"""MVTec AD layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png."""

import pandas as pd

from defects.config import categories, resolve
from defects.config_data import DataConfig
from defects.data.junk import list_folders
from defects.data.mask_assignment import MaskNotes, attach_empty_masks, attach_masks
from defects.data.role_folders import RoleFolder, open_folders
from defects.data.sources.listing import Listing, rows
from defects.errors import UserError, shorten_names

GOOD = "good"  # the kind of test images without a defect


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
        table = rows(data, folder.images, root, "test" if is_test else "train", label, folder.kind)
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
    kinds = list_folders(root / "test")
    if not kinds and (root / "train" / GOOD).is_dir():
        raise UserError(
            f"{root / 'test'} holds no folders of test images (test/good, test/<kind>): check data.root"
        )
    folders = [RoleFolder("normal", root / "train" / GOOD, f"train/{GOOD}")]
    for path in kinds:
        role = "normal" if path.name == GOOD else "abnormal"
        folders.append(RoleFolder(role, path, f"test/{path.name}", path.name))
    for path in kinds:
        masks = root / "ground_truth" / path.name
        if path.name != GOOD and masks.is_dir():
            folders.append(RoleFolder("masks", masks, f"ground_truth/{path.name}", path.name))
    return folders
