"""What a layout says of a data set: its folders, each for one purpose, and a table with a row per image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import pandas as pd

from defects.config import DataConfig, resolve
from defects.data.folder_scan import FolderScan, check_complete, check_not_empty, folder_key, scan_folder
from defects.data.mask_matching import MasksBeside, split_off_masks
from defects.files import same_text
from defects.messages import UNWRITABLE, UserError, shorten_names

Role = Literal["normal", "abnormal", "masks", "test"]
COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind"]


@dataclass
class RoleFolder:
    """A folder, what it is for and the setting, or the place in a fixed layout, that says so."""

    role: Role
    path: Path
    setting: str
    kind: str = ""  # of defect, where the layout has a folder for each
    scan: FolderScan | None = None  # its files, less the folders of other roles in it
    beside: MasksBeside | None = None  # images and the masks among them; None for a folder of masks
    nested: list["RoleFolder"] = field(default_factory=list)  # those that lie in it

    @property
    def images(self) -> list[Path]:
        return self.beside.images if self.beside else []

    def __str__(self) -> str:
        return f"{self.setting} ({self.path})"


@dataclass
class Listing:
    """`images`: a row for each image (COLUMNS; paths relative to data.root, label empty where unknown).

    Where data.classes names classes, also `class_columns`: the run-length mask of each class, "" without
    one; label is then 1 if there is any. `runs` is the same as a long table (read_rle_table), as it stands
    in `runs_file`.
    `answers`: image_id, label, kind, mask_path of labelled test images, kept apart from training.
    `folders`: what was listed. `notes`: further lines for the inventory.
    """

    images: pd.DataFrame
    answers: pd.DataFrame | None = None
    runs: pd.DataFrame | None = None
    runs_file: Path | None = None
    folders: list[RoleFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_rows(
    data: DataConfig,
    paths: Sequence[Path],
    base: Path,
    split: str,
    label: int | None,
    kind: str = "",
    prefix: str = "",
) -> pd.DataFrame:
    """Rows (COLUMNS) of images whose id is `prefix` and their path below `base`.

    Raises UserError for names that no table can hold.
    """
    root = resolve(data.root)
    check_names(paths)
    table = pd.DataFrame(
        {
            "image_id": [same_text(prefix + path.relative_to(base).as_posix()) for path in paths],
            "path": [below(path, root) for path in paths],
        }
    )
    table = table.assign(split=split, label=label, mask_path="", kind=kind)
    return table.astype({"label": "Int64"})[COLUMNS]


def below(path: Path, root: Path) -> str:
    """A path relative to `root` if it lies below it, else as it is; with `/`."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def check_names(paths: Sequence[Path]) -> None:
    """Raises UserError for names that no table can hold."""
    unreadable = [path.as_posix() for path in paths if UNWRITABLE.search(path.as_posix())]
    if unreadable:
        raise UserError(
            f"unreadable letters in the file names {shorten_names(unreadable)}: rename these files"
        )


def open_folders(folders: Sequence[RoleFolder]) -> list[RoleFolder]:
    """List the files of the folders. A folder inside another one belongs to its own role alone.

    A folder of masks that is also that of the abnormal images is left out: the masks then lie beside these.
    Raises UserError for a folder that is missing, empty or incomplete, for two roles of one folder, and where
    a folder inside another one may be meant for both.
    """
    for folder in folders:
        if not folder.path.is_dir():
            problem = "is a file, not a folder" if folder.path.is_file() else "is not a folder"
            setting = f"{folder.setting} or data.root" if folder.setting.startswith("data.") else "data.root"
            raise UserError(f"{folder.path} {problem}: put the data set there, or change {setting}")
    mask_folders_with_images = []
    for first, second in combinations(folders, 2):
        if not _is_same(first, second):
            continue
        if {first.role, second.role} != {"abnormal", "masks"}:
            raise UserError(f"{first} and {second} are the same folder: name another one for one of them")
        mask_folders_with_images.append(first if first.role == "masks" else second)
    opened = [_scan(folder, folders) for folder in folders if folder not in mask_folders_with_images]
    check_complete(folder.scan for folder in opened)
    _check_nested(opened)
    _check_links(opened)
    for folder in opened:
        check_not_empty(folder.scan)
        if folder.role != "masks":
            has_masks = any(_is_same(folder, masks) for masks in folders if masks.role == "masks")
            folder.beside = split_off_masks(folder.scan.images, folder.setting, has_masks)
    return opened


def _is_same(first: RoleFolder, second: RoleFolder) -> bool:
    return folder_key(first.path) == folder_key(second.path)


def _scan(folder: RoleFolder, folders: Sequence[RoleFolder]) -> RoleFolder:
    others = [candidate for candidate in folders if not _is_same(folder, candidate)]
    scan = scan_folder(folder.path, [candidate.path for candidate in others])
    nested = [candidate for candidate in others if folder_key(candidate.path) in scan.excluded_folders]
    return RoleFolder(folder.role, folder.path, folder.setting, folder.kind, scan, nested=nested)


def _check_nested(folders: Sequence[RoleFolder]) -> None:
    """Raises UserError for a folder inside another one whose files may be meant for both.

    Test images may well be meant to hold the normal ones too, and a folder of masks the images.
    """
    for outer in folders:
        for inner in outer.nested:
            if inner.role != "masks" and outer.role not in ("normal", "abnormal"):
                raise UserError(
                    f"{inner} lies inside {outer}: whether its files count as both cannot be told; name two "
                    "folders that lie beside each other"
                )


def _check_links(folders: Sequence[RoleFolder]) -> None:
    """Raises UserError for a folder that two roles reach by links."""
    for first, second in combinations(folders, 2):
        shared_keys = first.scan.folders.keys() & second.scan.folders.keys()
        if shared_keys:
            shared = min(first.scan.folders[key] for key in shared_keys)
            raise UserError(
                f"{shared} belongs to {first} and, by a link, to {second}: remove the link, or change one of "
                "the two"
            )
