"""Plain folders: one of normal images; optionally abnormal ones, their masks, unlabelled test images."""

from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.layouts.listing import Listing, id_prefixes, rows
from defects.data.mask_assignment import MaskNotes, attach_by_role
from defects.data.role_folders import RoleFolder, open_folders

ROLES = {"normal": ("train", 0), "abnormal": ("train", 1), "test": ("test", None)}  # split, label


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root, or start with the folder's name where it lies outside.

    Masks carry their image's name, as `match_masks` says.
    """
    root, names = resolve(data.root), data.folders
    given = {"normal": names.normal, "abnormal": names.abnormal, "masks": names.masks, "test": names.test}
    without_images = []
    if names.masks is not None and names.abnormal is None:
        given["masks"] = None
        without_images = ["data.folders.masks is not used, since data.folders.abnormal names no images"]
    folders = []
    for role, name in given.items():
        if name is not None:
            folders.append(RoleFolder(role, root / Path(name).expanduser(), f"data.folders.{role}"))
    opened = open_folders(folders)
    prefixes = id_prefixes(root, [folder.path for folder in opened])
    notes = MaskNotes(root)
    tables = {}
    for folder, prefix in zip(opened, prefixes, strict=True):
        if folder.role in ROLES:
            split, label = ROLES[folder.role]
            tables[folder.role] = rows(data, folder.images, folder.path, split, label, prefix=prefix)
    by_role = {folder.role: folder for folder in opened}
    tables = attach_by_role(data, tables, by_role, notes)
    images = pd.concat(tables.values(), ignore_index=True)
    return Listing(images, folders=opened, notes=without_images + notes.lines())
