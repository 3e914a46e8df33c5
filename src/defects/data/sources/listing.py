"""The table that every source fills, and what the sources need to fill it."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import list_images
from defects.errors import UserError
from defects.files import same_text

# Surrogates stand for bytes that are no UTF-8: archives packed on old Windows systems unpack to such names.
UNWRITABLE = re.compile(r"[\ud800-\udfff\r\n]")
COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind"]


@dataclass
class Listing:
    """`images`: one row per image (COLUMNS; paths relative to data.root, label empty where unknown).

    Where data.classes names classes, also `class_columns`: the run-length mask of each class, "" without
    one; label is then 1 if there is any. `runs` is the same as a long table (read_rle_table), as it was
    found in `runs_file`.
    `answers`: image_id, label, kind, mask_path of labelled test images, kept away from training.
    """

    images: pd.DataFrame
    answers: pd.DataFrame | None = None
    runs: pd.DataFrame | None = None
    runs_file: Path | None = None


def rows(
    data: DataConfig, paths: list[Path], base: Path, split: str, label: int | None, kind: str = ""
) -> pd.DataFrame:
    """Rows of images whose id is their path below `base`. UserError for names that no table can hold."""
    root = resolve(data.root)
    _check_names(paths)
    table = pd.DataFrame(
        {
            "image_id": [same_text(path.relative_to(base).as_posix()) for path in paths],
            "path": [_below(path, root) for path in paths],
        }
    )
    table["split"], table["label"], table["mask_path"], table["kind"] = split, label, "", kind
    return table.astype({"label": "Int64"})[COLUMNS]


def attach_masks(
    data: DataConfig, table: pd.DataFrame, images: Path, folder: Path, suffix: str = ""
) -> pd.DataFrame:
    """Fill mask_path: `<images>/a/name.jpg` has `<folder>/a/name<suffix>.png`, or one without the suffix.

    Raises UserError naming the images without a mask.
    """
    root = resolve(data.root)
    known = {_stem(path, folder, suffix): _below(path, root) for path in list_images(folder)}
    masks = [known.get(_stem(root / path, images), "") for path in table["path"]]
    missing = [path for path, mask in zip(table["path"], masks, strict=True) if not mask]
    if missing and data.bad_masks == "error":
        raise UserError(
            f"{folder} has no mask for {', '.join(missing)}: add it, or set data.bad_masks=drop to do without"
        )
    return table.assign(mask_path=masks)


def _check_names(paths: list[Path]) -> None:
    broken = [path for path in paths if UNWRITABLE.search(path.as_posix())]
    if broken:
        shown = ", ".join(ascii(path.as_posix()) for path in broken)
        raise UserError(f"unreadable letters in the file names {shown}: rename these files")


def _stem(path: Path, base: Path, suffix: str = "") -> str:
    """Path below `base` without file extension and suffix."""
    return same_text(path.relative_to(base).with_suffix("").as_posix().removesuffix(suffix))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
