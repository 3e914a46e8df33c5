"""The defect/normal competition: train/{defect_images,defect_masks,normal_images}, test/images."""

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.listing import Listing, MaskNotes, RoleFolder, attach_by_role, make_rows, open_folders


def list_data(data: DataConfig) -> Listing:
    """Training ids are `defect_images/name` and `normal_images/name`; test ids are file names.

    Defect masks and test images may be absent.
    """
    root = resolve(data.root)
    train = root / "train"
    folders = [
        RoleFolder("normal", train / "normal_images", "train/normal_images"),
        RoleFolder("abnormal", train / "defect_images", "train/defect_images"),
    ]
    masks = RoleFolder("masks", train / "defect_masks", "train/defect_masks")
    test = RoleFolder("test", root / "test" / "images", "test/images")
    folders += [folder for folder in (masks, test) if folder.path.is_dir()]
    by_role = {folder.role: folder for folder in open_folders(folders)}
    tables = {
        "normal": make_rows(data, by_role["normal"].images, train, "train", 0),
        "abnormal": make_rows(data, by_role["abnormal"].images, train, "train", 1),
    }
    if "test" in by_role:
        tables["test"] = make_rows(data, by_role["test"].images, test.path, "test", None)
    notes = MaskNotes(root)
    tables = attach_by_role(data, tables, by_role, notes)
    images = pd.concat(tables.values(), ignore_index=True)
    return Listing(images, folders=list(by_role.values()), notes=notes.lines())
