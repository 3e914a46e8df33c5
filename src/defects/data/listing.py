"""What a layout says of a data set: its folders, each for one purpose, and a table with a row per image.

A layout opens its folders (open_folders), makes the rows of each (make_rows) and attaches the masks to them
(attach_by_role, or attach_masks and attach_empty_masks).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import FolderScan, check_complete, check_not_empty, folder_key, scan_folder
from defects.data.labels import join_masks
from defects.data.mask_matching import MasksBeside, match_masks, split_off_masks
from defects.files import same_text
from defects.messages import UNWRITABLE, UserError, shorten_names

if TYPE_CHECKING:
    from defects.data.annotations.matching import Marks

Role = Literal["normal", "abnormal", "annotated", "masks", "test"]  # annotated: normal ones and defects
LISTING_COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind"]


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

    def leave_out(self, files: Sequence[Path]) -> None:
        """Count `files`, which are of use, no longer among those that are not taken."""
        inside = Counter(path.suffix.lower() for path in files if path.is_relative_to(self.path))
        self.scan = replace(self.scan, other_files=self.scan.other_files - inside)

    def __str__(self) -> str:
        return f"{self.setting} ({self.path})"


@dataclass
class Listing:
    """`images`: a row for each image (LISTING_COLUMNS; paths below data.root, label empty where unknown).

    Where data.classes names classes, also `class_columns`: the run-length mask of each class, "" without
    one; label is then 1 if there is any. `runs` is the same as a long table (read_rle_table), as it stands
    in `runs_file`.
    `answers`: image_id, label, kind, mask_path of labelled test images, kept apart from training.
    `marks`: what an annotation tool says of the images, to be drawn once their sizes are known.
    `folders`: what was listed. `notes`: further lines for the inventory.
    """

    images: pd.DataFrame
    answers: pd.DataFrame | None = None
    runs: pd.DataFrame | None = None
    runs_file: Path | None = None
    folders: list[RoleFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    marks: "Marks | None" = None


def make_rows(
    data: DataConfig,
    paths: Sequence[Path],
    base: Path,
    split: str,
    label: int | None,
    kind: str = "",
    prefix: str = "",
) -> pd.DataFrame:
    """Rows (LISTING_COLUMNS) of images whose id is `prefix` and their path below `base`.

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
    return table.astype({"label": "Int64"})[LISTING_COLUMNS]


def separate_test(
    tables: dict[str, pd.DataFrame], use_test_as: str
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Images and answers of a Listing with labelled test images; `tables`: `train` and `test`, or `train`.

    With `use_test_as` = train (data.use_test_as) the test images join the training side, without answers.
    """
    train = tables["train"]
    test = tables.get("test")
    if test is None or test.empty:
        return train.reset_index(drop=True), None
    if use_test_as == "train":
        return pd.concat([train, test.assign(split="train")], ignore_index=True), None
    answers = test[["image_id", "label", "kind", "mask_path"]].reset_index(drop=True)
    hidden = test.assign(label=pd.array([None] * len(test), "Int64"), mask_path="", kind="")
    return pd.concat([train, hidden], ignore_index=True), answers


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
            if inner.role != "masks" and outer.role not in ("normal", "abnormal", "annotated"):
                raise UserError(
                    f"{inner} lies inside {outer}: it is unclear whether its files count as both; name two "
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


# --- masks -------------------------------------------------------------------------------------------------


@dataclass
class MaskNotes:
    """What becomes of the masks of all folders, for the inventory; texts are paths as in the tables."""

    root: Path
    unmatched: list[Path] = field(default_factory=list)  # masks of which no image is known yet
    united: list[str] = field(default_factory=list)  # images with several masks
    among_images: list[str] = field(default_factory=list)  # masks that lie among images
    of_test_images: list[str] = field(default_factory=list)  # masks among test images, left out

    def lines(self) -> list[str]:
        texts = {
            "masks belong to no image": [below(path, self.root) for path in self.unmatched],
            "images have several masks each, which are united": self.united,
            "masks lie among the images, and are not taken as images": self.among_images,
            "masks lie among test images, and are left out": self.of_test_images,
        }
        return [f"{len(names)} {text}: {shorten_names(names)}" for text, names in texts.items() if names]


def attach_masks(
    data: DataConfig, table: pd.DataFrame, images: RoleFolder, masks: RoleFolder | None, notes: MaskNotes
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`, abnormal ones: masks in the folder `masks`, and beside them.

    Raises UserError naming the images without a mask, and masks of which it is not clear whose they are.
    """
    masks_of = _masks_among_images(images, notes)
    unmatched = []
    if masks is not None:
        masks_of, unmatched = _match_folder(masks_of, images, masks, masks.scan.images)
        notes.unmatched += unmatched
    counts = [len(of_image) for of_image in masks_of]
    notes.united += [path for path, count in zip(table["path"], counts, strict=True) if count > 1]
    missing = [path for path, count in zip(table["path"], counts, strict=True) if count == 0]
    has_masks = masks is not None or any(counts)
    if has_masks and missing and data.bad_masks == "error":
        _refuse_missing(images, masks, missing, images.beside.orphans + unmatched)
    return table.assign(mask_path=_mask_paths(masks_of, notes.root))


def attach_empty_masks(
    table: pd.DataFrame, images: RoleFolder, masks: RoleFolder | None, notes: MaskNotes
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`, normal ones: those masks that no abnormal image has.

    Some data sets have masks for all of their images. That these mark nothing is checked later.
    """
    masks_of = _masks_among_images(images, notes)
    if masks is not None and notes.unmatched:
        masks_of, notes.unmatched = _match_folder(masks_of, images, masks, notes.unmatched)
    return table.assign(mask_path=_mask_paths(masks_of, notes.root))


def attach_by_role(
    data: DataConfig, tables: dict[str, pd.DataFrame], folders: dict[str, RoleFolder], notes: MaskNotes
) -> dict[str, pd.DataFrame]:
    """The tables of a data set with one folder for each role, their mask_path filled."""
    masks = folders.get("masks")
    filled = dict(tables)
    if "abnormal" in tables:
        filled["abnormal"] = attach_masks(data, tables["abnormal"], folders["abnormal"], masks, notes)
    filled["normal"] = attach_empty_masks(tables["normal"], folders["normal"], masks, notes)
    if "test" in tables:
        leave_out_masks(folders["test"], notes)
    return filled


def leave_out_masks(images: RoleFolder, notes: MaskNotes) -> None:
    """Note the masks that lie among images which may have none: test images, and those of a table."""
    _masks_among_images(images, notes)


def _masks_among_images(images: RoleFolder, notes: MaskNotes) -> list[list[Path]]:
    """The masks of each image that lie in its own folder; they and those of no image go to `notes`."""
    masks_of = [list(images.beside.masks.get(path, [])) for path in images.images]
    names = [below(path, notes.root) for of_image in masks_of for path in of_image]
    if images.role == "test":
        notes.of_test_images += names
    else:
        notes.among_images += names
    notes.unmatched += images.beside.orphans
    return masks_of


def _match_folder(
    masks_of: list[list[Path]], images: RoleFolder, masks: RoleFolder, files: Sequence[Path]
) -> tuple[list[list[Path]], list[Path]]:
    """`masks_of`, the masks of each image, with `files` of the folder `masks`; and files of no image."""
    inside = [path for path in files if path.is_relative_to(masks.path)]
    matches = match_masks(
        [path.relative_to(images.path).as_posix() for path in images.images],
        [path.relative_to(masks.path).as_posix() for path in inside],
    )
    if images.role == "abnormal":
        _refuse_ambiguous(matches.ambiguous, images.images, inside)
    all_masks_of = []
    for of_image, numbers in zip(masks_of, matches.of_image, strict=True):
        all_masks_of.append([*of_image, *(inside[number] for number in numbers)])
    matched = {path for of_image in all_masks_of for path in of_image}
    return all_masks_of, [path for path in files if path not in matched]


def _mask_paths(masks_of: list[list[Path]], root: Path) -> list[str]:
    check_names([path for of_image in masks_of for path in of_image])
    return [join_masks([below(path, root) for path in of_image]) for of_image in masks_of]


def _refuse_ambiguous(ambiguous: dict[int, list[int]], images: Sequence[Path], masks: Sequence[Path]) -> None:
    if not ambiguous:
        return
    number, fitting = next(iter(ambiguous.items()))
    names = shorten_names((images[place] for place in fitting), " and ")
    more = f" ({len(ambiguous) - 1} more such masks)" if len(ambiguous) > 1 else ""
    raise UserError(
        f"{masks[number]} may be the mask of {names}{more}: name it with the suffix of its image, such as "
        f"{images[fitting[0]].name}.png"
    )


def _refuse_missing(
    images: RoleFolder, masks: RoleFolder | None, missing: list[str], orphans: list[Path]
) -> None:
    place = masks.path if masks is not None else images.path
    unused = f" (masks that fit no image: {shorten_names(path.name for path in orphans)})" if orphans else ""
    raise UserError(
        f"{place} has no mask for {shorten_names(missing)}{unused}: add it, named like its image with or "
        "without _mask, or set data.bad_masks=drop to do without"
    )
