"""The defect/normal competition: train/{defect_images,defect_masks,normal_images}, test/images."""

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.layouts.listing import Listing, rows
from defects.data.mask_assignment import MaskNotes, attach_by_role
from defects.data.role_folders import RoleFolder, open_folders


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
    notes = MaskNotes(root)
    tables = {
        "normal": rows(data, by_role["normal"].images, root / "train", "train", 0),
        "abnormal": rows(data, by_role["abnormal"].images, root / "train", "train", 1),
    }
    if "test" in by_role:
        tables["test"] = rows(data, by_role["test"].images, test.path, "test", None)
    tables = attach_by_role(data, tables, by_role, notes)
    return Listing(pd.concat(tables.values(), ignore_index=True), folders=opened, notes=notes.lines())
