"""Leak-free folds, each with a share of every rare class, and the training list of a fold."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from defects.config_schema import BalanceConfig, SplitConfig, resolve
from defects.data.labels import DEFECT, class_names, target_labels
from defects.data.user_tables import match_ids, read_user_table
from defects.files import same_text
from defects.messages import SHOWN_NAMES, UserError, shorten_names

NORMAL = "the normal images"  # in messages
TRAINING_ONLY = "train"  # in place of a fold's number: learnt from in every fold, never validated on
# Degrees counter-clockwise, by symmetries; with `rotations` any angle will do.
SYMMETRY_DEGREES = {"dihedral": [0.0, 90.0, 180.0, 270.0], "flips": [0.0, 180.0], "none": [0.0]}

Transform = tuple[float, str]  # degrees counter-clockwise, and the flip ("none" or "horizontal") made before


def assign_folds(groups: np.ndarray, targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold [N] of each image: whole groups, rarest class first, each to the fold poorest in that class.

    `groups` [N] are ids, `targets` [N, C] is 0/1 (several classes per image allowed). Unlike
    scikit-learn's StratifiedGroupKFold this gives every fold each class that `folds` groups have,
    whatever the group sizes, and it takes several labels per image.
    """
    _, group_of_image = np.unique(groups, return_inverse=True)
    counts = np.zeros((group_of_image.max() + 1, targets.shape[1]))  # images of a group and class
    np.add.at(counts, group_of_image, targets)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    fold_of_group = np.full(len(counts), -1)
    counts_of_fold = np.zeros((folds, targets.shape[1]))
    for label in np.argsort(targets.sum(axis=0), kind="stable"):
        waiting = shuffled[(fold_of_group[shuffled] < 0) & (counts[shuffled, label] > 0)]
        for group in waiting[np.argsort(-counts[waiting, label], kind="stable")]:
            # Ties in the class go to the smaller fold, then to the lower number.
            fold = np.lexsort((counts_of_fold.sum(axis=1), counts_of_fold[:, label]))[0]
            fold_of_group[group] = fold
            counts_of_fold[fold] += counts[group]
    return fold_of_group[group_of_image]


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
    is_training_only, notes = _find_only_groups(groups, images, classes, split)
    _check_counts(groups, images, classes, split, is_training_only)
    for note in notes:
        print(note)
    fold = np.full(len(images), TRAINING_ONLY, dtype=object)
    numbers = assign_folds(
        groups[~is_training_only], class_targets(images)[~is_training_only], split.folds, split.seed
    )
    fold[~is_training_only] = numbers.astype(str)
    return fold


def _members_of_classes(images: pd.DataFrame, classes: list[str]) -> dict[str, np.ndarray]:
    """bool [N] for each class of defects, or for defects as such, and for normal images."""
    names = [f"the images of class {name}" for name in classes] or ["the defects"]
    return dict(zip([*names, NORMAL], class_targets(images).T == 1, strict=True))


def _find_only_groups(
    groups: np.ndarray, images: pd.DataFrame, classes: list[str], split: SplitConfig
) -> tuple[np.ndarray, list[str]]:
    """bool [N]: images of groups that are the only one of their class: never validated on; and notes.

    Several pictures that the search for siblings joined into one group do not count: there it is more likely
    wrong. Without classes normal images are not checked either.
    """
    is_training_only = np.zeros(len(images), dtype=bool)
    is_stated = split.group_file is not None or split.group_pattern is not None
    names_of_images = {}  # by class
    for name, is_member in _members_of_classes(images, classes).items():
        own_groups = np.unique(groups[is_member])
        pictures = images.loc[is_member, "sha256" if "sha256" in images else "image_id"]
        is_one_picture = pictures.nunique() == 1
        if len(own_groups) != 1 or not (is_stated or is_one_picture) or (name == NORMAL and not classes):
            continue
        is_training_only |= groups == own_groups[0]
        names_of_images[name] = shorten_names(images.loc[is_member, "image_id"])
    notes = []
    for name, names in list(names_of_images.items())[:SHOWN_NAMES]:
        notes.append(
            f"note: {name} lie in 1 group ({names}): it is learnt from in every fold and never\n"
            "      validated on, so no out-of-fold figure covers such images"
        )
    more_classes = list(names_of_images)[SHOWN_NAMES:]
    if more_classes:
        notes.append(f"note: the same holds for {shorten_names(more_classes)}")
    return is_training_only, notes


def _check_counts(
    groups: np.ndarray,
    images: pd.DataFrame,
    classes: list[str],
    split: SplitConfig,
    is_training_only: np.ndarray,
) -> None:
    """UserError when there are fewer groups of a class than folds, naming where the groups come from.

    Without classes there may be no defect at all, with them no normal image, or none of a class. Normal
    images of groups that are in no validation fold do not count.
    """
    members = _members_of_classes(images, classes)
    counts = {}  # groups of the classes that have too few
    for name, is_member in members.items():
        if name == NORMAL:
            is_member = is_member & ~is_training_only
        count = len(np.unique(groups[is_member]))
        is_needed = count > 0 or (name == NORMAL and not classes)
        if count < split.folds and is_needed and not is_training_only[is_member].any():
            counts[name] = count
    if not counts:
        return
    name = min(counts, key=counts.get)
    count = counts[name]
    source, correction = _describe_source(split, len(np.unique(groups)) < len(groups))
    if count > 1:
        problem = f"{name} lie in {count} groups{source} for split.folds={split.folds}"
        advice = f"set split.folds={count}, or add images of other objects"
    else:
        problem = f"{name} lie in {count} group{source}" if count else f"{name} are missing"
        if name == NORMAL and (members[NORMAL] & is_training_only).any():
            problem = f"{name} lie in {count or 'no'} group{source} beside those with the defects"
        problem += f" for split.folds={split.folds}"
        advice = "add images of other objects: two folds, the fewest, need two groups"
    raise UserError(f"{problem}: {advice}{correction}")


def _describe_source(split: SplitConfig, is_joined: bool) -> tuple[str, str]:
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
    groups = table["group"].to_numpy()
    targets = class_targets(table)
    is_only = np.zeros(len(table), dtype=bool)
    for is_member in targets.T == 1:
        own_groups = np.unique(groups[is_member])
        if len(own_groups) == 1:
            is_only |= groups == own_groups[0]
    parts = max(2, round(1 / fraction))
    is_unseen = (assign_folds(groups, targets, parts, seed) == 0) & ~is_only
    is_normal = targets[:, -1] == 1
    if not (is_unseen & is_normal).any():
        # The group that costs the fewest defects, then the fewest images.
        rows = pd.DataFrame({"group": groups, "defect": ~is_normal, "only": is_only, "normal": is_normal})
        sizes = rows.groupby("group").agg(
            defects=("defect", "sum"),
            images=("defect", "size"),
            only=("only", "any"),
            normal=("normal", "any"),
        )
        candidates = sizes[sizes["normal"] & ~sizes["only"]].sort_values(["defects", "images"], kind="stable")
        is_unseen |= np.isin(groups, candidates.index[:1])
    return is_unseen


def find_stated_groups(images: pd.DataFrame, split: SplitConfig) -> pd.Series | None:
    """Groups that the user states (coil, part number), by file or by pattern; None if neither is set."""
    if split.group_file is not None:
        path = resolve(split.group_file)
        groups = images["image_id"].map(_read_groups(path, images["image_id"]))
        source = str(path)
    elif split.group_pattern is not None:
        groups = _match_pattern(images["image_id"], split.group_pattern)
        source = f"split.group_pattern={split.group_pattern}"
    else:
        return None
    without_group = images.loc[groups.isna(), "image_id"]
    if len(without_group):
        raise UserError(
            f"{source} gives no group for {len(without_group)} images: {shorten_names(without_group)}"
        )
    return groups


def _read_groups(path: Path, image_ids: Iterable[str]) -> dict[str, str]:
    """Group by image_id, of the images that the file lists with one."""
    table = read_user_table(path, ["image_id", "group"])
    if not {"image_id", "group"} <= set(table.columns):
        raise UserError(f"{path} has the columns {shorten_names(table.columns)}; expected image_id, group")
    listed = table["image_id"].map(same_text)
    matched = match_ids(listed, image_ids, str(path))
    table = table.assign(image_id=listed.map(lambda name: matched.get(name, name)))
    table = table[table["group"] != ""].drop_duplicates(["image_id", "group"])
    repeated = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(repeated):
        raise UserError(f"{path} puts some images into two groups: {shorten_names(repeated.unique())}")
    return table.set_index("image_id")["group"].to_dict()


def _match_pattern(ids: pd.Series, pattern: str) -> pd.Series:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"split.group_pattern={pattern}: {error}") from None
    if compiled.groups < 1:
        raise UserError(f"split.group_pattern={pattern}: put the part that names the group in parentheses")
    matches = [compiled.search(text) for text in ids]
    return pd.Series(
        [match.group(1) if match else None for match in matches], index=ids.index, dtype="object"
    )


def make_training_rows(
    originals: pd.DataFrame, symmetries: str, balance: BalanceConfig, seed: int
) -> pd.DataFrame:
    """image_id, angle, flip: every row one training sample, from originals (rows of images.csv) alone.

    Normal images draw their transforms from the very list that the rare copies use, so neither border
    nor interpolation tells the classes apart.
    """
    rng = np.random.default_rng(seed)
    is_rare = originals["label"] == 1
    rare = originals.loc[is_rare, "image_id"].to_numpy()
    normal = originals.loc[originals["label"] == 0, "image_id"].to_numpy()
    copies = np.ones(len(rare), dtype=int)
    if balance.method == "oversample" and len(rare):
        if class_names(originals):
            copies = _count_copies_of_classes(originals[is_rare], balance.ratio)
        else:
            rows_in_all = round(balance.ratio * len(normal))
            copies = np.full(len(rare), max(1, rows_in_all // len(rare)))
            if rows_in_all > len(rare):  # the remainder goes to a random few
                copies[rng.permutation(len(rare))[: rows_in_all % len(rare)]] += 1
    rows = []
    for name, count in zip(rare, copies, strict=True):
        rows += [(name, *transform) for transform in spread_transforms(symmetries, count, balance.angle_step)]
    transforms = [row[1:] for row in rows] or [(0.0, "none")]
    drawn = rng.permutation(np.resize(np.arange(len(transforms)), len(normal)))
    rows += [(name, *transforms[index]) for name, index in zip(normal, drawn, strict=True)]
    return pd.DataFrame(rows, columns=["image_id", "angle", "flip"])


def _count_copies_of_classes(rare: pd.DataFrame, ratio: float) -> np.ndarray:
    """int [N]: copies of each defective image, for each class to reach `ratio` of the most frequent one.

    An image counts as its rarest class demands, and never less than once.
    """
    is_of_class = target_labels(rare, tuple(class_names(rare)))
    counts = is_of_class.sum(axis=0)
    gains = ratio * counts.max() / np.maximum(counts, 1)
    return np.ceil(np.maximum(1.0, (is_of_class * gains).max(axis=1))).astype(int)


def spread_transforms(symmetries: str, copies: int, angle_step: float) -> list[Transform]:
    """`copies` distinct label-preserving transforms, evenly spread; fewer if there are no more.

    A vertical flip is a horizontal one rotated by 180 degrees, so only {none, horizontal} x angles are
    distinct: 72 at 10 degrees, not 108. Free rotation halves the step until there are enough.
    """
    flips = ["none"] if symmetries == "none" else ["none", "horizontal"]
    if symmetries == "rotations":
        while len(flips) * int(360 // angle_step) < copies:
            angle_step /= 2
        angles = [number * angle_step for number in range(int(360 // angle_step))]
    else:
        angles = SYMMETRY_DEGREES[symmetries]
    copies = min(copies, len(flips) * len(angles))
    flipped = copies // 2 if len(flips) == 2 else 0
    # The flipped copies take the angles half-way between those of the plain ones.
    plain = [(angle, "none") for angle in _spread(angles, copies - flipped, 0.0)]
    return sorted(plain + [(angle, "horizontal") for angle in _spread(angles, flipped, 0.5)])


def _spread(angles: list[float], count: int, offset: float) -> list[float]:
    positions = ((np.arange(count) + offset) * len(angles) / max(count, 1)).astype(int)
    return [angles[position] for position in positions]
