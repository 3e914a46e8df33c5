"""What is known of images: labels of one or several targets, and masks from files or runs."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defects.data.mask_files import read_mask
from defects.data.rle import decode
from defects.messages import UserError

MASK_SEPARATOR = "|"  # between the paths in mask_path: no mask's own path may hold it
INVERTED = "inverted"  # in front of the paths, where masks mark what is no defect; no file: it has no suffix
DEFECT = "defect"  # the target that every data set has: is there any?
COLUMN = "defect_"  # + class: its runs in images.csv, "" where there is none
RUNS = "runs"  # column of images.csv with the runs of all defects: of annotations without classes


class Labels(NamedTuple):
    """What a batch tells of its images: labels of `targets`, in this order; masks and groups if asked for."""

    targets: tuple[str, ...] = (DEFECT,)
    masks: bool = False
    groups: bool = False

    @property
    def classes(self) -> list[str]:
        return [target for target in self.targets if target != DEFECT]


ANY_DEFECT = Labels()


def class_columns(classes: list[str]) -> list[str]:
    """Of images.csv."""
    return [COLUMN + name for name in classes]


def class_names(rows: pd.DataFrame) -> list[str]:
    """The classes that images.csv tells apart."""
    return [name.removeprefix(COLUMN) for name in rows.columns if name.startswith(COLUMN)]


def target_labels(rows: pd.DataFrame, targets: tuple[str, ...]) -> np.ndarray:
    """0/1 float32 [N, C] of rows of images.csv; NaN where unknown."""
    is_defective = rows["label"].to_numpy(dtype="float32", na_value=float("nan"))
    columns = []
    for name in targets:
        if name == DEFECT:
            columns.append(is_defective)
        else:
            columns.append((rows[COLUMN + name] != "") + 0 * is_defective)  # NaN where the label is
    return np.stack(columns, axis=1).astype(np.float32)


def is_marked(row: dict[str, Any]) -> bool:
    """Whether a row of images.csv says where a defect is."""
    return bool(row["mask_path"]) or any(row[name] for name in _run_columns(row))


def has_mask(row: dict[str, Any]) -> bool:
    """Whether the mask is known, an empty one of a normal image included."""
    return row["label"] == 0 or is_marked(row)


def join_masks(paths: list[str], inverted: bool = False) -> str:
    """mask_path of images.csv: the mask files of one image, "" for none. UserError for a `|` in a path."""
    for path in paths:
        if MASK_SEPARATOR in path:
            raise UserError(f"{path} has a {MASK_SEPARATOR} in its name, which separates masks: rename it")
    return MASK_SEPARATOR.join([INVERTED, *paths] if inverted and paths else paths)


def split_masks(mask_path: str) -> tuple[list[str], bool]:
    """The paths that join_masks joined, and whether the masks are inverted."""
    paths = mask_path.split(MASK_SEPARATOR) if mask_path else []
    inverted = paths[:1] == [INVERTED]
    return paths[inverted:], inverted


def read_mask_files(mask_path: str, root: Path) -> np.ndarray:
    """bool [H, W]: what the masks of one image mark together. Raises UserError for masks of several sizes."""
    paths, inverted = split_masks(mask_path)
    united = read_mask(root / paths[0], inverted)
    for path in paths[1:]:
        mask = read_mask(root / path, inverted)
        if mask.shape != united.shape:
            raise UserError(f"{root / paths[0]} and {root / path}, masks of one image, differ in size")
        united = united | mask
    return united


def read_masks(row: dict[str, Any], root: Path, classes: list[str]) -> np.ndarray | None:
    """uint8 [H, W, K] of a row of images.csv: a mask of each class, or with no classes one of all defects.

    None where nothing is marked.
    """
    if not is_marked(row):
        return None
    if row["mask_path"]:
        return read_mask_files(row["mask_path"], root).astype(np.uint8)[..., None]
    columns = class_columns(classes) or _run_columns(row)
    masks = np.stack([decode(row[name], (row["height"], row["width"])) for name in columns], axis=2)
    return masks if classes else masks.max(axis=2, keepdims=True)


def _run_columns(row: dict[str, Any]) -> list[str]:
    return [name for name in row if name == RUNS or name.startswith(COLUMN)]
