"""Plain folders: one of normal images; optionally abnormal ones, their masks, unlabelled test images."""

from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.mask_assignment import MaskNotes, attach_masks, attach_masks_beside
from defects.data.role_folders import RoleFolder, open_folders
from defects.data.sources.listing import Listing, id_prefixes, rows

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
    masks = next((folder for folder in opened if folder.role == "masks"), None)
    notes = MaskNotes()
    parts = []
    for folder, prefix in zip(opened, prefixes, strict=True):
        if folder.role == "masks":
            continue
        split, label = ROLES[folder.role]
        table = rows(data, folder.images, folder.path, split, label, prefix=prefix)
        if folder.role == "abnormal":
            table = attach_masks(data, table, folder, masks, notes)
        else:
            table = attach_masks_beside(data, table, folder, notes)
        parts.append(table)
    images = pd.concat(parts, ignore_index=True)
    return Listing(images, folders=opened, notes=without_images + notes.lines())
