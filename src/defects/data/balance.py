"""The training list of a fold: which originals, in which rotations and flips."""

import numpy as np
import pandas as pd

from defects.config_data import BalanceConfig
from defects.data.labels import class_names, target_labels

Member = tuple[float, str]  # degrees counter-clockwise, and the flip ("none" or "horizontal") made before

ANGLES = {"dihedral": [0.0, 90.0, 180.0, 270.0], "flips": [0.0, 180.0], "none": [0.0]}


def members(symmetries: str, copies: int, angle_step: float) -> list[Member]:
    """`copies` distinct label-preserving transforms, evenly spread; fewer if there are no more.

    A vertical flip is a horizontal one turned by 180 degrees, so only {none, horizontal} x angles are
    distinct: 72 at 10 degrees, not 108. Free rotation halves the step until there are enough.
    """
    flips = ["none"] if symmetries == "none" else ["none", "horizontal"]
    while symmetries == "rotations" and len(flips) * _turns(angle_step) < copies:
        angle_step /= 2
    angles = ANGLES.get(symmetries) or [turn * angle_step for turn in range(_turns(angle_step))]
    copies = min(copies, len(flips) * len(angles))
    flipped = copies // 2 if len(flips) == 2 else 0
    plain = copies - flipped
    # The flipped copies take the angles half-way between those of the plain ones.
    return sorted(
        [(angle, "none") for angle in _spread(angles, plain, 0.0)]
        + [(angle, "horizontal") for angle in _spread(angles, flipped, 0.5)]
    )


def training_rows(
    originals: pd.DataFrame, symmetries: str, balance: BalanceConfig, seed: int
) -> pd.DataFrame:
    """image_id, angle, flip: every row one training sample, from originals (rows of images.csv) alone.

    Normal images draw their transforms from the very list that the rare copies use, so neither border
    nor interpolation tells the classes apart.
    """
    rng = np.random.default_rng(seed)
    rare = originals.loc[originals["label"] == 1, "image_id"].to_numpy()
    normal = originals.loc[originals["label"] == 0, "image_id"].to_numpy()
    copies = [1] * len(rare)
    if balance.method == "oversample" and len(rare):
        if class_names(originals):
            copies = np.ceil(_gains(originals, balance.ratio)[originals["label"] == 1]).astype(int)
        else:
            copies = _copies(len(rare), round(balance.ratio * len(normal)), rng)
    rows = [
        (name, *member)
        for name, count in zip(rare, copies, strict=True)
        for member in members(symmetries, count, balance.angle_step)
    ]
    used = [row[1:] for row in rows] or [(0.0, "none")]
    drawn = rng.permutation(np.resize(np.arange(len(used)), len(normal)))
    rows += [(name, *used[index]) for name, index in zip(normal, drawn, strict=True)]
    return pd.DataFrame(rows, columns=["image_id", "angle", "flip"])


def _gains(rows: pd.DataFrame, ratio: float) -> np.ndarray:
    """How often each row [N] must count for the rare ones to reach `ratio`.

    Of defects for each normal image; of several classes, of each class for each image of the most frequent
    one: then an image counts as its rarest class demands, and never less than once.
    """
    defect = rows["label"].to_numpy(dtype=float) == 1
    names = class_names(rows)
    if not names:
        return np.where(defect, ratio * (~defect).sum() / max(defect.sum(), 1), 1.0)
    member = target_labels(rows, tuple(names))
    counts = member.sum(axis=0)
    wanted = ratio * counts.max() / np.maximum(counts, 1)
    return np.maximum(1.0, (member * wanted).max(axis=1))


def _turns(angle_step: float) -> int:
    return int(360 // angle_step)


def _spread(angles: list[float], count: int, offset: float) -> list[float]:
    positions = ((np.arange(count) + offset) * len(angles) / max(count, 1)).astype(int)
    return [angles[position] for position in positions]


def _copies(rare: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Copies of each rare original, at least one; a remainder goes to a random few."""
    copies = np.full(rare, max(1, wanted // rare))
    if wanted > rare:
        copies[rng.permutation(rare)[: wanted % rare]] += 1
    return copies
