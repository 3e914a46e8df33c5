"""The table that every source fills, and what the sources need to fill it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.paths import below, check_names
from defects.data.role_folders import RoleFolder
from defects.files import same_text

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


def id_prefixes(root: Path, folders: Sequence[Path]) -> list[str]:
    """What ids of images in each folder start with: its path below `root`, or its name if it lies outside.

    As many of the folders above are added as it takes for all to differ.
    """
    root_parts = _parts(root)
    parts = [_parts(folder) for folder in folders]
    count = len(root_parts)
    is_inside = [path[:count] == root_parts for path in parts]
    kept = [len(path) - count if inside else 1 for path, inside in zip(parts, is_inside, strict=True)]
    for _ in range(max(map(len, parts))):
        prefixes = ["/".join(path[len(path) - number :]) for path, number in zip(parts, kept, strict=True)]
        for place, prefix in enumerate(prefixes):
            if prefixes.count(prefix) > 1 and not is_inside[place] and kept[place] < len(parts[place]):
                kept[place] += 1
    return [f"{prefix}/" if prefix else "" for prefix in prefixes]


def _parts(path: Path) -> tuple[str, ...]:
    return Path(os.path.normcase(os.path.normpath(path))).parts
