"""The table that every source fills, and what the sources need to fill it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.labels import join_masks
from defects.data.mask_names import match_masks
from defects.data.role_folders import RoleFolder
from defects.errors import UserError, shorten_names
from defects.files import same_text

# Surrogates stand for bytes that are no UTF-8: archives packed on old Windows systems unpack to such names.
# Control characters and line separators would break tables and messages.
UNWRITABLE = re.compile(r"[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029]")
COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind"]


@dataclass
class Listing:
    """`images`: one row per image (COLUMNS; paths relative to data.root, label empty where unknown).

    Where data.classes names classes, also `class_columns`: the run-length mask of each class, "" without
    one; label is then 1 if there is any. `runs` is the same as a long table (read_rle_table), as it was
    found in `runs_file`.
    `answers`: image_id, label, kind, mask_path of labelled test images, kept away from training.
    `folders`: what was listed. `notes`: what the inventory is to say besides.
    """

    images: pd.DataFrame
    answers: pd.DataFrame | None = None
    runs: pd.DataFrame | None = None
    runs_file: Path | None = None
    folders: list[RoleFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rows(
    data: DataConfig,
    paths: Sequence[Path],
    base: Path,
    split: str,
    label: int | None,
    kind: str = "",
    prefix: str = "",
) -> pd.DataFrame:
    """Rows of images whose id is `prefix` and their path below `base`.

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
    table["split"], table["label"], table["mask_path"], table["kind"] = split, label, "", kind
    return table.astype({"label": "Int64"})[COLUMNS]


def attach_masks(
    data: DataConfig, table: pd.DataFrame, images: RoleFolder, masks: RoleFolder | None, notes: list[str]
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`: masks by their names in the folder `masks`, and those beside.

    Raises UserError naming the images without a mask, and masks of which it is not clear whose they are.
    """
    root = resolve(data.root)
    found: list[list[Path]] = [list(images.beside.masks.get(path, [])) for path in images.images]
    orphans = list(images.beside.orphans)
    if masks is not None:
        files = masks.scan.images
        names = match_masks(
            [path.relative_to(images.path).as_posix() for path in images.images],
            [path.relative_to(masks.path).as_posix() for path in files],
        )
        _refuse_ambiguous(names.ambiguous, images.images, files)
        for of_image, numbers in zip(found, names.of_image, strict=True):
            of_image += [files[number] for number in numbers]
        orphans += [files[number] for number in names.orphans]
    check_names([path for of_image in found for path in of_image])
    if data.bad_masks == "error":
        _check_orphans(table, found, orphans)
    if orphans:
        notes.append(f"{len(orphans)} masks belong to no image: {_shown(orphans, root)}")
    several = [path for path, of_image in zip(table["path"], found, strict=True) if len(of_image) > 1]
    if several:
        notes.append(f"{len(several)} images have several masks each, united: {shorten_names(several)}")
    missing = [path for path, of_image in zip(table["path"], found, strict=True) if not of_image]
    if missing and (masks is not None or any(found)) and data.bad_masks == "error":
        place = masks.path if masks is not None else images.path
        names = shorten_names(missing)
        raise UserError(f"{place} has no mask for {names}: add it, or set data.bad_masks=drop to do without")
    return table.assign(mask_path=_mask_paths(found, root))


def attach_masks_beside(
    data: DataConfig, table: pd.DataFrame, images: RoleFolder, notes: list[str]
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`, normal ones, with the masks that lie among them.

    Masks among test images are left out, and so noted.
    """
    root = resolve(data.root)
    found = [images.beside.masks.get(path, []) for path in images.images]
    check_names([path for of_image in found for path in of_image])
    if any(found):
        count = sum(map(len, found))
        first = next(of_image[0] for of_image in found if of_image)
        notes.append(f"{count} masks lie among the images of {images.setting}, such as {below(first, root)}")
    if images.beside.orphans:
        orphans = images.beside.orphans
        notes.append(f"{len(orphans)} masks belong to no image: {_shown(orphans, root)}")
    return table if images.role == "test" else table.assign(mask_path=_mask_paths(found, root))


def _mask_paths(found: list[list[Path]], root: Path) -> list[str]:
    return [join_masks([below(path, root) for path in of_image]) for of_image in found]


def _shown(paths: Sequence[Path], root: Path) -> str:
    return shorten_names(below(path, root) for path in paths)


def check_names(paths: Sequence[Path]) -> None:
    """Raises UserError for names that no table can hold."""
    broken = [path for path in paths if UNWRITABLE.search(path.as_posix())]
    if broken:
        shown = shorten_names(ascii(path.as_posix()) for path in broken)
        raise UserError(f"unreadable letters in the file names {shown}: rename these files")


def below(path: Path, root: Path) -> str:
    """A path relative to `root` if it lies below it, else as it is; with `/`."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def id_prefixes(root: Path, folders: Sequence[Path]) -> list[str]:
    """What ids of images in each folder start with: its path below `root`, or its name if it lies outside.

    As many of the folders above are added as it takes for all to differ.
    """
    root_parts = _parts(root)
    parts = [_parts(folder) for folder in folders]
    count = len(root_parts)
    is_inside = [each[:count] == root_parts for each in parts]
    kept = [len(each) - count if inside else 1 for each, inside in zip(parts, is_inside, strict=True)]
    for _ in range(max(map(len, parts))):
        prefixes = ["/".join(each[len(each) - number :]) for each, number in zip(parts, kept, strict=True)]
        for place, prefix in enumerate(prefixes):
            if prefixes.count(prefix) > 1 and not is_inside[place] and kept[place] < len(parts[place]):
                kept[place] += 1
    return [f"{prefix}/" if prefix else "" for prefix in prefixes]


def _parts(path: Path) -> tuple[str, ...]:
    return Path(os.path.normcase(os.path.normpath(path))).parts


def _refuse_ambiguous(ambiguous: dict[int, list[int]], images: Sequence[Path], masks: Sequence[Path]) -> None:
    if ambiguous:
        number, fitting = next(iter(ambiguous.items()))
        names = shorten_names((images[place] for place in fitting), " and ")
        others = f" ({len(ambiguous) - 1} more such masks)" if len(ambiguous) > 1 else ""
        raise UserError(
            f"{masks[number]} may be the mask of {names}{others}: call it like one of them, with its suffix, "
            "such as name.jpg.png"
        )


def _check_orphans(table: pd.DataFrame, found: list[list[Path]], orphans: list[Path]) -> None:
    """Raises UserError if there are masks, and not one fits an image."""
    if orphans and len(table) and not any(found):
        raise UserError(
            f"none of {len(orphans)} masks fits an image by its name: {orphans[0]} is no mask of "
            f"{Path(table['path'].iloc[0]).name}; call masks like their images, with or without _mask"
        )
