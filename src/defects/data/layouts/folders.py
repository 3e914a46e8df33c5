"""Plain folders: one of normal images; optionally abnormal ones, their masks, unlabelled test images."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.listing import Listing, MaskNotes, RoleFolder, attach_by_role, make_rows, open_folders
from defects.settings import Section

ROLES = {"normal": ("train", 0), "abnormal": ("train", 1), "test": ("test", None)}  # split, label


class Settings(Section):
    """Folders relative to `data.root`."""

    normal: str = "normal"
    abnormal: str | None = None
    masks: str | None = None
    test: str | None = None


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root, or start with the folder's name where it lies outside.

    Masks carry their image's name, as `match_masks` says.
    """
    root = resolve(data.root)
    names = data.folders.model_dump()
    notes = []
    if names["masks"] is not None and names["abnormal"] is None:
        names["masks"] = None
        notes.append("data.folders.masks is not used, since data.folders.abnormal names no images")
    folders = []
    for role, name in names.items():
        if name is not None:
            folders.append(RoleFolder(role, root / Path(name).expanduser(), f"data.folders.{role}"))
    opened = open_folders(folders)
    prefixes = _id_prefixes(root, [folder.path for folder in opened])
    tables = {}
    for folder, prefix in zip(opened, prefixes, strict=True):
        if folder.role in ROLES:
            split, label = ROLES[folder.role]
            tables[folder.role] = make_rows(data, folder.images, folder.path, split, label, prefix=prefix)
    mask_notes = MaskNotes(root)
    tables = attach_by_role(data, tables, {folder.role: folder for folder in opened}, mask_notes)
    images = pd.concat(tables.values(), ignore_index=True)
    return Listing(images, folders=opened, notes=notes + mask_notes.lines())


def _id_prefixes(root: Path, folders: Sequence[Path]) -> list[str]:
    """What ids of images in each folder start with: its path below `root`, or its name if it lies outside.

    Where names of several folders are equal, as many of the folders above are added as it takes.
    """
    root_parts = _parts(root)
    parts = [_parts(folder) for folder in folders]
    is_inside = [path[: len(root_parts)] == root_parts for path in parts]
    lengths = []  # parts of each path, counted from its end, that make the prefix
    for path, inside in zip(parts, is_inside, strict=True):
        lengths.append(len(path) - len(root_parts) if inside else 1)
    while True:
        prefixes = ["/".join(path[len(path) - length :]) for path, length in zip(parts, lengths, strict=True)]
        is_longer = False
        for place, prefix in enumerate(prefixes):
            if prefixes.count(prefix) > 1 and not is_inside[place] and lengths[place] < len(parts[place]):
                lengths[place] += 1
                is_longer = True
        if not is_longer:
            return [f"{prefix}/" if prefix else "" for prefix in prefixes]


def _parts(path: Path) -> tuple[str, ...]:
    return Path(os.path.normcase(os.path.normpath(path))).parts
