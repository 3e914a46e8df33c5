"""The folders of a data set, each for one purpose: no file may serve two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from defects.data.folder_scan import FolderScan, check_complete, check_not_empty, folder_key, scan_folder
from defects.data.mask_matching import MasksBeside, split_off_masks
from defects.messages import UserError

Role = Literal["normal", "abnormal", "masks", "test"]


@dataclass
class RoleFolder:
    """A folder, what it is for and the setting, or the place in a fixed layout, that says so."""

    role: Role
    path: Path
    setting: str
    kind: str = ""  # of defect, where the layout has a folder for each
    scan: FolderScan | None = None  # what it holds, less the folders of other roles in it
    beside: MasksBeside | None = None  # images and the masks among them; None for a folder of masks
    nested: list["RoleFolder"] = field(default_factory=list)  # those that lie in it

    @property
    def images(self) -> list[Path]:
        return self.beside.images if self.beside else []

    def __str__(self) -> str:
        return f"{self.setting} ({self.path})"


def open_folders(folders: Sequence[RoleFolder]) -> list[RoleFolder]:
    """List what is in each folder. A folder inside another one belongs to its own role alone.

    Raises UserError for one that is missing, empty or incomplete, for two roles of one folder, and where a
    folder inside another one may be meant for both.
    """
    opened = [_scan(folder, folders) for folder in _without_masks_beside(folders)]
    check_complete(folder.scan for folder in opened)
    for outer in opened:
        for inner in outer.nested:
            if not _is_certain(inner.role, outer.role):
                raise UserError(
                    f"{inner} lies inside {outer}: whether its files count as both cannot be told; name two "
                    "folders that lie beside each other"
                )
    for one, other in combinations(opened, 2):
        shared = sorted(one.scan.folders[key] for key in one.scan.folders.keys() & other.scan.folders.keys())
        if shared:
            raise UserError(
                f"{shared[0]} belongs to {one} and, by a link, to {other}: remove the link, or change one of "
                "the two"
            )
    for folder in opened:
        check_not_empty(folder.scan)
        if folder.role != "masks":
            masks_here = any(_is_same(folder, other) for other in folders if other.role == "masks")
            folder.beside = split_off_masks(folder.scan.images, folder.setting, masks_here)
    return opened


def _without_masks_beside(folders: Sequence[RoleFolder]) -> list[RoleFolder]:
    """All but a folder of masks that is that of the abnormal images: the masks then lie beside these.

    Raises UserError for any other two roles of one folder.
    """
    for folder in folders:
        if not folder.path.is_dir():
            what = "is a file, not a folder" if folder.path.is_file() else "is not a folder"
            changed = f"{folder.setting} or data.root" if folder.setting.startswith("data.") else "data.root"
            raise UserError(f"{folder.path} {what}: put the data set there, or change {changed}")
    beside = []
    for one, other in combinations(folders, 2):
        if not _is_same(one, other):
            continue
        if {one.role, other.role} != {"abnormal", "masks"}:
            raise UserError(f"{one} and {other} are the same folder: name another one for one of them")
        beside.append(one if one.role == "masks" else other)
    return [folder for folder in folders if folder not in beside]


def _is_same(one: RoleFolder, other: RoleFolder) -> bool:
    return folder_key(one.path) == folder_key(other.path)


def _scan(folder: RoleFolder, folders: Sequence[RoleFolder]) -> RoleFolder:
    others = [other for other in folders if not _is_same(folder, other)]
    scan = scan_folder(folder.path, [other.path for other in others])
    nested = [other for other in others if folder_key(other.path) in scan.excluded_folders]
    return RoleFolder(folder.role, folder.path, folder.setting, folder.kind, scan, nested=nested)


def _is_certain(inner: Role, outer: Role) -> bool:
    """Whether files of a folder inside another one can only be what the inner one is for.

    Test images may well be meant to hold the normal ones too, and a folder of masks the images.
    """
    return inner == "masks" or outer in ("normal", "abnormal")
