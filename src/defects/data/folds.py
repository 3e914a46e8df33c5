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
from defects.files import same_text
from defects.messages import SHOWN_NAMES, UserError, shorten_names

NORMAL = "the normal images"  # in messages
TRAINING_ONLY = "train"  # in place of a fold's number: learnt from in every fold, never held out


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


def plan_folds(
    images: pd.DataFrame, groups: np.ndarray, classes: list[str], split: SplitConfig
) -> np.ndarray:
    """Fold of each image [N], as text; TRAINING_ONLY for the only group of a class, with a note about it.

    Raises UserError when there are fewer groups of a class than folds.
    """
    is_training_only, notes = find_only_groups(groups, images, classes, split)
    check_counts(groups, images, classes, split.folds, split, is_training_only)
    for note in notes:
        print(note)
    fold = np.full(len(images), TRAINING_ONLY, dtype=object)
    rest = ~is_training_only
    found = assign_folds(groups[rest], class_targets(images)[rest], split.folds, split.seed)
    fold[rest] = found.astype(str)
    return fold


def find_only_groups(
    groups: np.ndarray, images: pd.DataFrame, classes: list[str], split: SplitConfig
) -> tuple[np.ndarray, list[str]]:
    """bool [N]: images of groups that are the only one of their class, which cannot be held out; and notes.

    Several pictures that the search for siblings joined into one group do not count: there it is more likely
    wrong. Without classes normal images are not looked at either.
    """
    is_training_only = np.zeros(len(images), dtype=bool)
    is_stated = split.group_file is not None or split.group_pattern is not None
    only = {}
    for name, member in _members(images, classes).items():
        found = np.unique(groups[member])
        pictures = images.loc[member, "sha256" if "sha256" in images else "image_id"]
        if len(found) != 1 or not (is_stated or pictures.nunique() == 1) or (name == NORMAL and not classes):
            continue
        is_training_only |= groups == found[0]
        only[name] = shorten_names(images.loc[member, "image_id"])
    return is_training_only, _describe_only_groups(only)


def _describe_only_groups(only: dict[str, str]) -> list[str]:
    """A note about each of the first classes of `only`, which gives their images; the others by name."""
    notes = []
    for name, images in list(only.items())[:SHOWN_NAMES]:
        notes.append(
            f"note: {name} lie in 1 group ({images}): it is learnt from in every fold and never held\n"
            "      out, so no out-of-fold figure tells how such images are judged"
        )
    others = list(only)[SHOWN_NAMES:]
    if others:
        notes.append(f"note: the same holds for {shorten_names(others)}")
    return notes


def check_counts(
    groups: np.ndarray,
    images: pd.DataFrame,
    classes: list[str],
    folds: int,
    split: SplitConfig | None = None,
    is_training_only: np.ndarray | None = None,
) -> None:
    """UserError when there are fewer groups of a class than folds, naming where the groups come from.

    Without classes there may be no defect at all, with them no normal image, or none of a class. Normal
    images of groups that are never held out do not count.
    """
    if is_training_only is None:
        is_training_only = np.zeros(len(images), dtype=bool)
    members = _members(images, classes)
    is_shared = bool((members[NORMAL] & is_training_only).any())
    few = {}
    for name, member in members.items():
        if name == NORMAL:
            member = member & ~is_training_only
        count = len(np.unique(groups[member]))
        is_needed = count > 0 or (name == NORMAL and not classes)
        if count < folds and is_needed and not is_training_only[member].any():
            few[name] = count
    if not few:
        return
    name = min(few, key=few.get)
    count = few[name]
    source, correction = _source_of(split or SplitConfig(), len(np.unique(groups)) < len(groups))
    if count > 1:
        problem = f"{name} lie in {count} groups{source} for split.folds={folds}"
        advice = f"set split.folds={count}, or add images of other objects"
    else:
        problem = f"{name} lie in {count} group{source}" if count else f"{name} are missing"
        if name == NORMAL and is_shared:
            problem = f"{name} lie in {count or 'no'} group{source} beside those with the defects"
        problem += f" for split.folds={folds}"
        advice = "add images of other objects: two folds, the fewest, need two groups"
    raise UserError(f"{problem}: {advice}{correction}")


def _members(images: pd.DataFrame, classes: list[str]) -> dict[str, np.ndarray]:
    """bool [N] for each class of defects, or for defects as such, and for normal images."""
    names = [f"the images of class {name}" for name in classes] or ["the defects"]
    return dict(zip([*names, NORMAL], class_targets(images).T == 1, strict=True))


def _source_of(split: SplitConfig, is_joined: bool) -> tuple[str, str]:
    """The setting that groups come from, and what can be done about it, as ends of a message."""
    if split.group_file is not None:
        return " (split.group_file)", f", or correct {split.group_file}"
    if split.group_pattern is not None:
        return " (split.group_pattern)", f", or correct split.group_pattern={split.group_pattern}"
    if split.duplicates.enabled and is_joined:
        return " (split.duplicates, the search for photographs of one object)", (
            ", or, if it joined different objects, set split.duplicates.enabled=false"
        )
    return "", ""


def inner_holdout(table: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: the part of a training side (image_id, group, label) kept unseen inside it.

    It serves what must be fitted on unseen images (quantiles, stopping) without touching the fold. Of two
    groups of normal images or more at least one is kept unseen. The only group of a class never is, or
    nothing would be left to learn that class from.
    """
    if fraction == 0:
        return np.zeros(len(table), dtype=bool)
    groups, targets = table["group"].to_numpy(), class_targets(table)
    is_only = np.zeros(len(table), dtype=bool)
    for member in targets.T == 1:
        found = np.unique(groups[member])
        if len(found) == 1:
            is_only |= groups == found[0]
    parts = max(2, round(1 / fraction))
    is_unseen = (assign_folds(groups, targets, parts, seed) == 0) & ~is_only
    is_normal = targets[:, -1] == 1
    if not (is_unseen & is_normal).any():
        # The group that costs the fewest defects, then the fewest images.
        sizes = pd.DataFrame({"group": groups, "defect": ~is_normal, "only": is_only, "normal": is_normal})
        sizes = sizes.groupby("group").agg(
            defects=("defect", "sum"),
            images=("defect", "size"),
            only=("only", "any"),
            normal=("normal", "any"),
        )
        candidates = sizes[sizes["normal"] & ~sizes["only"]].sort_values(["defects", "images"], kind="stable")
        is_unseen |= np.isin(groups, candidates.index[:1])
    return is_unseen


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
