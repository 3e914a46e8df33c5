"""Plain folders: normal images; optionally abnormal ones, their masks or annotations, and test images."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.annotations import list_label_folders, load_annotations
from defects.data.annotations.matching import label_by_annotations
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_by_role,
    leave_out_masks,
    make_rows,
    open_folders,
)
from defects.messages import UserError
from defects.settings import Section

# Settings of folders, what is in them, split, label.
ROLES = {
    "normal": ("normal", "train", 0),
    "abnormal": ("abnormal", "train", 1),
    "images": ("annotated", "train", None),
    "masks": ("masks", "", None),
    "test": ("test", "test", None),
}


class Settings(Section):
    """Folders relative to `data.root`."""

    normal: str | None = "normal"
    abnormal: str | None = None
    images: str | None = None  # normal ones and defects together: data.annotations says which
    masks: str | None = None
    test: str | None = None


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root, or start with the folder's name where it lies outside.

    Masks carry their image's name, as `match_masks` says, or data.annotations says where defects are.
    """
    root = resolve(data.root)
    annotations = None
    if data.annotations is not None:
        annotations = load_annotations(root / data.annotations.expanduser(), data.annotation_format)
    names = data.folders.model_dump()
    _check_folders(data)
    notes = []
    if names["masks"] is not None and names["abnormal"] is None:
        names["masks"] = None
        notes.append("data.folders.masks is not used, since data.folders.abnormal names no images")
    folders = []
    for setting, (role, _, _) in ROLES.items():
        if names[setting] is not None:
            path = root / Path(names[setting]).expanduser()
            folders.append(RoleFolder(role, path, f"data.folders.{setting}"))
    if annotations is not None:
        for path in list_label_folders(annotations):
            folders.append(RoleFolder("masks", path, "data.annotations"))
    opened = open_folders(folders)
    prefixes = _id_prefixes(root, [folder.path for folder in opened])
    places = {role: (split, label) for role, split, label in ROLES.values()}
    tables = {}
    for folder, prefix in zip(opened, prefixes, strict=True):
        if folder.role != "masks":
            split, label = places[folder.role]
            tables[folder.role] = make_rows(data, folder.images, folder.path, split, label, prefix=prefix)
    mask_notes = MaskNotes(root)
    marks = None
    if annotations is None:
        tables = attach_by_role(data, tables, {folder.role: folder for folder in opened}, mask_notes)
    else:
        tables, marks, annotation_notes = label_by_annotations(data, tables, annotations)
        notes += annotation_notes
        for folder in opened:
            folder.leave_out(annotations.files)
            if folder.role != "masks":
                leave_out_masks(folder, mask_notes)
    images = pd.concat(tables.values(), ignore_index=True)
    return Listing(images, marks=marks, folders=opened, notes=notes + mask_notes.lines())


def _check_folders(data: DataConfig) -> None:
    """Raises UserError for settings that do not go together."""
    folders = data.folders
    if folders.normal is None and folders.images is None:
        raise UserError(
            "data.folders names no training images: set data.folders.normal or data.folders.images"
        )
    if data.annotations is None:
        if folders.images is not None:
            raise UserError(
                "data.folders.images needs data.annotations, which says what is defective; without, use "
                "data.folders.normal and data.folders.abnormal"
            )
    elif folders.masks is not None:
        raise UserError(
            "data.folders.masks and data.annotations both say where defects are: set one of them to null"
        )


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
