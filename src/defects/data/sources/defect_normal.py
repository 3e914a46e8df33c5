"""The defect/normal competition: train/{defect_images,defect_masks,normal_images}, test/images."""

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.mask_assignment import MaskNotes, attach_masks, attach_masks_beside
from defects.data.role_folders import RoleFolder, open_folders
from defects.data.sources.listing import Listing, rows


def list_data(data: DataConfig) -> Listing:
    """Training ids are `defect_images/name` and `normal_images/name`; test ids are file names.

    Defect masks and test images may be absent.
    """
    root = resolve(data.root)
    normal = RoleFolder("normal", root / "train" / "normal_images", "train/normal_images")
    abnormal = RoleFolder("abnormal", root / "train" / "defect_images", "train/defect_images")
    masks = RoleFolder("masks", root / "train" / "defect_masks", "train/defect_masks")
    test = RoleFolder("test", root / "test" / "images", "test/images")
    present = [folder for folder in (masks, test) if folder.path.is_dir()]
    opened = open_folders([normal, abnormal, *present])
    by_role = {folder.role: folder for folder in opened}
    notes = MaskNotes()
    parts = []
    for role, label in (("normal", 0), ("abnormal", 1)):
        folder = by_role[role]
        table = rows(data, folder.images, folder.path.parent, "train", label)
        if role == "abnormal":
            table = attach_masks(data, table, folder, by_role.get("masks"), notes)
        else:
            table = attach_masks_beside(data, table, folder, notes)
        parts.append(table)
    if "test" in by_role:
        folder = by_role["test"]
        table = rows(data, folder.images, folder.path, "test", None)
        parts.append(attach_masks_beside(data, table, folder, notes))
    return Listing(pd.concat(parts, ignore_index=True), folders=opened, notes=notes.lines())
