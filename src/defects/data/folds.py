"""Leak-free folds: what belongs together stays together, and every fold gets its share of the rare class."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import resolve
from defects.config_data import SplitConfig
from defects.data.labels import DEFECT, class_names, target_labels
from defects.data.user_tables import match_ids, read_user_table
from defects.errors import UserError, shorten_names
from defects.files import same_text


def assign_folds(groups: np.ndarray, targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold [N] of each image: whole groups, rarest class first, each to the fold poorest in that class.

    `groups` [N] are ids, `targets` [N, C] is 0/1 (several classes per image allowed). Unlike
    scikit-learn's StratifiedGroupKFold this gives every fold each class that `folds` groups have,
    whatever the group sizes, and it takes several labels per image.
    """
    _, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((member.max() + 1, targets.shape[1]))
    np.add.at(counts, member, targets)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    fold_of, held = np.full(len(counts), -1), np.zeros((folds, targets.shape[1]))
    for label in np.argsort(targets.sum(axis=0), kind="stable"):
        waiting = shuffled[(fold_of[shuffled] < 0) & (counts[shuffled, label] > 0)]
        for group in waiting[np.argsort(-counts[waiting, label], kind="stable")]:
            # Ties in the class go to the smaller fold, then to the lower number.
            fold = np.lexsort((held.sum(axis=1), held[:, label]))[0]
            fold_of[group] = fold
            held[fold] += counts[group]
    return fold_of[member]


def class_targets(images: pd.DataFrame) -> np.ndarray:
    """0/1 [N, C] of rows of images.csv: every class of defects, or defect as such, and normal."""
    defect = target_labels(images, tuple(class_names(images)) or (DEFECT,))
    return np.column_stack([defect, images["label"] == 0])


def inner_holdout(table: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: the part of a training side (image_id, group, label) kept unseen inside it.

    It serves what must be fitted on unseen images (quantiles, stopping) without touching the fold.
    """
    if fraction == 0:
        return np.zeros(len(table), dtype=bool)
    parts = max(2, round(1 / fraction))
    return assign_folds(table["group"].to_numpy(), class_targets(table), parts, seed) == 0


def check_counts(groups: np.ndarray, images: pd.DataFrame, classes: list[str], folds: int) -> None:
    """UserError when there are fewer groups of a class than folds.

    Without classes there may be no defect at all, with them no normal image, or none of a class.
    """
    names = [*(f"class {name}" for name in classes), "normal"] if classes else ["defect", "normal"]
    for name, member in zip(names, class_targets(images).T, strict=True):
        found = len(np.unique(groups[member == 1]))
        if found < folds and (found or (name == "normal" and not classes)):
            raise UserError(
                f"{found} distinct {name} images for split.folds={folds}: lower split.folds or add images"
            )


def given_groups(images: pd.DataFrame, split: SplitConfig) -> pd.Series | None:
    """Groups that the user states (coil, part number), by file or by pattern; None if neither is set."""
    if split.group_file is not None:
        path = resolve(split.group_file)
        groups = images["image_id"].map(_read_groups(path, images["image_id"]))
        source = str(path)
    elif split.group_pattern is not None:
        groups = _by_pattern(images["image_id"], split.group_pattern)
        source = f"split.group_pattern={split.group_pattern}"
    else:
        return None
    missing = images.loc[groups.isna(), "image_id"]
    if len(missing):
        raise UserError(f"{source} gives no group for {len(missing)} images: {shorten_names(missing)}")
    return groups


def _read_groups(path: Path, known_ids: Iterable[str]) -> dict[str, str]:
    """Group by image_id, of the images that the file gives one."""
    table = read_user_table(path, ["image_id", "group"])
    if not {"image_id", "group"} <= set(table.columns):
        raise UserError(f"{path} has the columns {shorten_names(table.columns)}; expected image_id, group")
    listed = table["image_id"].map(same_text)
    matched = match_ids(listed, known_ids, str(path))
    table = table.assign(image_id=listed.map(lambda name: matched.get(name, name)))
    table = table[table["group"] != ""].drop_duplicates(["image_id", "group"])
    twice = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise UserError(f"{path} puts some images into two groups: {shorten_names(twice.unique())}")
    return table.set_index("image_id")["group"].to_dict()


def _by_pattern(ids: pd.Series, pattern: str) -> pd.Series:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"split.group_pattern={pattern}: {error}") from None
    if compiled.groups < 1:
        raise UserError(f"split.group_pattern={pattern}: put the part that names the group in parentheses")
    found = [compiled.search(text) for text in ids]
    return pd.Series([match.group(1) if match else None for match in found], index=ids.index, dtype="object")
