"""Paste: normal training images that get a marked defect of another training image count as defective.

A few marked defects are seen on many surfaces (Ghiasi et al. 2021, arXiv 2012.07177, paste objects so). That
the paste itself could betray the class does no harm that was measured: normal images with a pasted piece of
another normal one, to rule it out, made classifiers of magnetic tiles worse.
"""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from defects.data.images import read_image, resize_mask
from defects.data.labels import Labels, is_marked, read_masks
from defects.data.transforms import DIHEDRAL
from defects.messages import UserError
from defects.numerics import derive_seed

KEY = 2  # of its random numbers, which are none of the augmentation's
GAP = np.ones((5, 5), np.uint8)  # parts up to 4 pixels apart are one defect
SCALES = (0.75, 4 / 3)
FEATHER = 3  # pixels around a defect over which its surface fades into the other one
RING = 12  # pixels around a defect whose brightness is matched
GAINS = (0.5, 2.0)
OUTWARD = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # x, y: left, right, top, bottom


class Pasted(NamedTuple):
    """A normal image with a defect pasted into it."""

    image: np.ndarray  # uint8 [H, W, 3]
    mask: np.ndarray  # uint8 [H, W, K], 1 where a defect was pasted
    label: np.ndarray  # float32 [C]


class Paste:
    """What is pasted into each of `rows` (all of images.csv) in one epoch; the defects are theirs too.

    A normal image gets a defect with `probability`. Raises UserError if no row says where its defects are.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        root: Path,
        size: tuple[int, int],
        probability: float,
        symmetries: str,
        labels: Labels,
        seed: int,
        bits: int | None = None,
    ):
        self.rows, self.root, self.size = rows.to_dict("records"), root, size
        self.bits = bits
        self.probability, self.symmetries, self.labels, self.seed = probability, symmetries, labels, seed
        self.marked = [index for index, row in enumerate(self.rows) if is_marked(row)]
        if not self.marked:
            raise UserError(
                f"train.paste={probability} pastes marked defects into normal images, but those that are "
                "learnt from have no marked defect: set it to 0"
            )

    def __call__(self, epoch: int, row: int, image: np.ndarray) -> Pasted | None:
        """`image`, uint8 [H, W, 3] of this row, with what is pasted into it; None if nothing is."""
        random = np.random.default_rng(derive_seed(self.seed, epoch, row, KEY))
        if self.rows[row]["label"] != 0 or random.random() >= self.probability:
            return None
        source = self.marked[random.integers(len(self.marked))]
        piece = self._piece(self.rows[source], random)
        matrix = place(piece.max(axis=2), self.symmetries, random)
        mask = np.stack([_moved(plane, matrix) > 0 for plane in np.moveaxis(piece, 2, 0)], axis=2)
        pixels = read_image(self.root / self.rows[source]["path"], self.size, self.bits)
        mixed = blend_patch(image, _moved(pixels, matrix), mask.any(axis=2))
        return Pasted(mixed, mask.astype(np.uint8), self._label(mask))

    def _piece(self, row: dict[str, Any], random: np.random.Generator) -> np.ndarray:
        """float32 [H, W, K]: one connected defect of a row, drawn in proportion to its area."""
        planes = np.moveaxis(read_masks(row, self.root, self.labels.classes), 2, 0)
        masks = np.stack([resize_mask(plane, self.size) for plane in planes], axis=2)
        defective = masks.any(axis=2)
        parts = cv2.connectedComponents(cv2.dilate(defective.astype(np.uint8), GAP))[1]
        numbers = parts[defective]
        return (masks & (parts == random.choice(numbers))[..., None]).astype(np.float32)

    def _label(self, mask: np.ndarray) -> np.ndarray:
        found = mask.any(axis=(0, 1))
        return np.append(found if self.labels.classes else [], found.any()).astype(np.float32)


def place(piece: np.ndarray, symmetries: str, random: np.random.Generator) -> np.ndarray:
    """A random scale, turn, flip and position, as `symmetries` allow, that leave `piece` [H, W] whole.

    float [2, 3], (x, y, 1) -> (x, y). A piece at a border of the image is put at a border again, turned by
    quarters at most; one that reaches from border to border keeps its size and these two borders.
    """
    points, last = np.argwhere(piece)[:, ::-1], np.array(piece.shape[::-1]) - 1
    reached = np.concatenate([points.min(axis=0) == 0, points.max(axis=0) == last])[[0, 2, 1, 3]]
    turn, scale = _turn(points, last, reached, symmetries, random)
    linear = scale * turn
    moved = points @ linear.T
    first, final = np.ceil(-moved.min(axis=0) - 1e-6), np.floor(last - moved.max(axis=0) + 1e-6)
    shift = first + np.floor(random.random(2) * (np.maximum(final - first, 0) + 1))
    for side in np.rint(OUTWARD[reached] @ turn.T):
        shift = np.where(side < 0, first, np.where(side > 0, final, shift))
    return np.column_stack([linear, shift])


def _turn(
    points: np.ndarray, last: np.ndarray, reached: np.ndarray, symmetries: str, random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Turn and flip [2, 2], and the scale, of a piece of `points` (x, y) whose image ends at `last`."""
    across = (reached[0] and reached[1]) or (reached[2] and reached[3])
    members = [member for member in DIHEDRAL[symmetries] if not (across and member[0] % 2)]
    turns, flip = members[random.integers(len(members))]
    angle = 90 * turns if symmetries != "rotations" or reached.any() else random.uniform(0, 360)
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] * ([-1, 1] if flip else [1, 1])
    fitting = (last - 1) / np.maximum(np.ptp(points @ turn.T, axis=0), 1)
    return turn, 1.0 if across else min(np.exp(random.uniform(*np.log(SCALES))), *fitting)


def blend_patch(image: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: `patch` where `mask` is True, fading into `image` around it.

    The patch is made as bright as the image, by the medians around the mask, which other defects there hardly
    move: as another lighting would do it, by a factor, so that a dark hole on a bright surface stays dark;
    what that leaves (extremes, another colour) is added to each channel.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    near = np.s_[max(0, y - RING) : y + height + RING, max(0, x - RING) : x + width + RING]
    mixed = image.copy()
    mixed[near] = _mixed(image[near], patch[near], mask[near])
    return mixed


def _mixed(image: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring, patch = (distance > 0) & (distance <= RING), patch.astype(np.float32)
    if ring.any():
        wanted, given = (np.median(pixels[ring], axis=0) for pixels in (image, patch))
        gain = np.clip(wanted.mean() / max(given.mean(), 1), *GAINS)
        patch = gain * patch + (wanted - gain * given)
    share = np.clip(1 - distance / (FEATHER + 1), 0, 1)[..., None]
    return np.rint(image + share * (patch - image)).clip(0, 255).astype(np.uint8)


def _moved(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[H, W, 3] beyond whose border it is mirrored, or a plane [H, W] beyond which there is nothing."""
    border = cv2.BORDER_REFLECT_101 if pixels.ndim == 3 else cv2.BORDER_CONSTANT
    return cv2.warpAffine(pixels, matrix, pixels.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=border)
