"""Normal training images that get a defect count as defective: a pasted one, or a drawn one.

Paste: a few marked defects are seen on many surfaces (Ghiasi et al. 2021, arXiv 2012.07177, paste objects
so). That the paste itself could betray the class does no harm that was measured: normal images with a pasted
piece of another normal one, to rule it out, made classifiers of magnetic tiles worse.

Synthetic: thirty real defects show a network a handful of shapes. Drawn ones are of every shape: blots and
lines, inside the image or ended by its border, darker or brighter than the surface, with its texture or not
(as CutPaste, Li et al. 2021, arXiv 2104.04015, and NSA, Schlueter et al. 2022, arXiv 2109.15222, do it). They
are made of the image's own pixels, so no outside data is needed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator

from defects.data.images import read_image, resize_mask
from defects.data.labels import Labels, is_marked, read_masks
from defects.data.roi import Roi
from defects.data.transforms import DIHEDRAL
from defects.messages import UserError
from defects.numerics import derive_seed

# Keys of their random numbers, which are none of the augmentation's.
PASTE_KEY = 2
SYNTHETIC_KEY = 3

GAP = np.ones((5, 5), np.uint8)  # parts up to 4 pixels apart are one defect
SCALES = (0.75, 4 / 3)
FEATHER = 3  # pixels around a defect over which its surface fades into the other one
RING = 12  # pixels around a defect whose brightness is matched
GAINS = (0.5, 2.0)
OUTWARD = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # x, y: left, right, top, bottom

DRAWN_MASK_SHARE = 0.35  # share of the full change from which a pixel belongs to the mask of a drawn defect
LINES = 0.4  # of all drawn defects
RADII = (0.02, 0.35)  # of a blot, times the shorter side
STRETCHED = 0.8  # log of the largest ratio of a blot's width and height
DARK = (0.3, 0.75)  # factors of brightness
BRIGHT = (1.35, 2.0)
SHARPEST = 0.4  # pixels, deviation of an edge
SOFTEST = 0.01  # the same, times the shorter side
WAVES = 8  # of which an outline is made


class AddedDefect(NamedTuple):
    """A normal image with a defect added to it."""

    image: np.ndarray  # uint8 [H, W, 3]
    mask: np.ndarray  # uint8 [H, W, K], 1 where the defect is
    label: np.ndarray  # float32 [C]

    def within(self, inside: np.ndarray, image: np.ndarray) -> "AddedDefect | None":
        """Of it what lies in `inside`, bool [H, W], the rest as in `image`; None if nothing does."""
        mask = self.mask * inside[..., None]
        is_present = mask.any(axis=(0, 1))
        if not is_present.any():
            return None
        label = self.label.copy()
        label[: len(is_present)] = is_present  # of several classes; the last stays, for any defect
        return AddedDefect(np.where(inside[..., None], self.image, image), mask, label)


# --- pasted defects --------------------------------------------------------------------------------------


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
        roi: Roi | None = None,
    ):
        self.rows = rows.to_dict("records")
        self.root = root
        self.size = size
        self.roi = roi
        self.probability = probability
        self.symmetries = symmetries
        self.labels = labels
        self.seed = seed
        self.bits = bits
        self.marked = [index for index, row in enumerate(self.rows) if is_marked(row)]
        if not self.marked:
            raise UserError(
                f"train.paste={probability} pastes marked defects into normal images, but those that are "
                "learnt from have no marked defect: set it to 0"
            )

    def __call__(
        self, epoch: int, row: int, image: np.ndarray, inside: np.ndarray | None = None
    ) -> AddedDefect | None:
        """`image`, uint8 [H, W, 3] of this row, with what is pasted into it; None if nothing is.

        With `inside`, bool [H, W], around what is True there: some of the defect may still lie beside it.
        """
        random = np.random.default_rng(derive_seed(self.seed, epoch, row, PASTE_KEY))
        if self.rows[row]["label"] != 0 or random.random() >= self.probability:
            return None
        source = self.rows[self.marked[random.integers(len(self.marked))]]
        source_inside = None
        if self.roi is None:
            pixels = read_image(self.root / source["path"], self.size, self.bits)
        else:
            pixels, source_inside = self.roi.read_image(source["path"], self.size)
        piece = self._choose_piece(source, source_inside, random)
        if piece is None:
            return None
        taken = bounding_box(source_inside, pixels.shape[:2])
        place = bounding_box(inside, image.shape[:2])
        patch = image.copy()
        mask = np.zeros((*image.shape[:2], piece.shape[2]), bool)
        size = mask[place].shape[:2]
        matrix = place_piece(piece[taken].max(axis=2), self.symmetries, random, size)
        patch[place] = _warp(pixels[taken], matrix, size)
        for number in range(piece.shape[2]):
            mask[..., number][place] = _warp(piece[taken][..., number], matrix, size) > 0
        mixed = blend_patch(image, patch, mask.any(axis=2))
        is_present = mask.any(axis=(0, 1))
        label = np.append(is_present if self.labels.classes else [], is_present.any())
        return AddedDefect(mixed, mask.astype(np.uint8), label.astype(np.float32))

    def _choose_piece(
        self, row: dict[str, Any], inside: np.ndarray | None, random: Generator
    ) -> np.ndarray | None:
        """float32 [H, W, K]: one connected defect of a row, drawn in proportion to its area.

        None if no pixel of it lies in `inside`.
        """
        planes = np.moveaxis(read_masks(row, self.root, self.labels.classes), 2, 0)
        masks = np.stack([resize_mask(plane, self.size) for plane in planes], axis=2)
        if inside is not None:
            masks &= inside[..., None]
        is_defective = masks.any(axis=2)
        if not is_defective.any():
            return None
        _, parts = cv2.connectedComponents(cv2.dilate(is_defective.astype(np.uint8), GAP))
        number = random.choice(parts[is_defective])
        return (masks & (parts == number)[..., None]).astype(np.float32)


def bounding_box(inside: np.ndarray | None, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of an image of `size` with anything True in `inside`, bool [H, W]; all without it."""
    if inside is None:
        return np.s_[: size[0], : size[1]]
    rows = np.flatnonzero(inside.any(axis=1))
    columns = np.flatnonzero(inside.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place_piece(piece: np.ndarray, symmetries: str, random: Generator, size: tuple[int, int]) -> np.ndarray:
    """A random scale, rotation, flip and position, as `symmetries` allow: all of `piece` [H, W] comes to lie
    in an image of `size`.

    float [2, 3], (x, y, 1) -> (x, y). A piece at a border of the image is put at a border again, rotated by
    quarters at most; one that reaches from border to border keeps its size and these two borders.
    """
    points = np.argwhere(piece)[:, ::-1]  # x, y
    last = np.array(piece.shape[::-1]) - 1
    # At the left, right, top, bottom border.
    is_at_border = np.concatenate([points.min(axis=0) == 0, points.max(axis=0) == last])[[0, 2, 1, 3]]
    end = np.array(size[::-1]) - 1
    rotation, scale = _choose_rotation(points, end, is_at_border, symmetries, random)
    linear = scale * rotation
    moved = points @ linear.T
    least = np.ceil(-moved.min(axis=0) - 1e-6)
    most = np.floor(end - moved.max(axis=0) + 1e-6)
    shift = least + np.floor(random.random(2) * (np.maximum(most - least, 0) + 1))
    for direction in np.rint(OUTWARD[is_at_border] @ rotation.T):
        shift = np.where(direction < 0, least, np.where(direction > 0, most, shift))
    return np.column_stack([linear, shift])


def _choose_rotation(
    points: np.ndarray, end: np.ndarray, is_at_border: np.ndarray, symmetries: str, random: Generator
) -> tuple[np.ndarray, float]:
    """Rotation and flip [2, 2], and the scale, of a piece of `points` (x, y); `end`: its last pixel."""
    left, right, top, bottom = is_at_border
    is_across = (left and right) or (top and bottom)
    members = [member for member in DIHEDRAL[symmetries] if not (is_across and member[0] % 2)]
    quarter_turns, flip = members[random.integers(len(members))]
    is_free = symmetries == "rotations" and not is_at_border.any()
    angle = random.uniform(0, 360) if is_free else 90 * quarter_turns
    rotation = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] * ([-1, 1] if flip else [1, 1])
    if is_across:
        return rotation, 1.0
    largest = np.maximum(end - 1, 1) / np.maximum(np.ptp(points @ rotation.T, axis=0), 1)
    return rotation, min(_log_uniform(random, SCALES), *largest)


def blend_patch(image: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: `patch` where `mask` is True, fading into `image` around it.

    The patch is made as bright as the image, by the medians around the mask, which other defects there hardly
    move: as another lighting would do it, by a factor, so that a dark hole on a bright surface stays dark;
    what that leaves (extremes, another colour) is added to each channel.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    near = np.s_[max(0, y - RING) : y + height + RING, max(0, x - RING) : x + width + RING]
    mixed = image.copy()
    mixed[near] = _mix(image[near], patch[near], mask[near])
    return mixed


def _mix(image: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    is_ring = (distance > 0) & (distance <= RING)
    patch = patch.astype(np.float32)
    if is_ring.any():
        image_level = np.median(image[is_ring], axis=0)
        patch_level = np.median(patch[is_ring], axis=0)
        gain = np.clip(image_level.mean() / max(patch_level.mean(), 1), *GAINS)
        patch = gain * patch + (image_level - gain * patch_level)
    share = np.clip(1 - distance / (FEATHER + 1), 0, 1)[..., None]
    return np.rint(image + share * (patch - image)).clip(0, 255).astype(np.uint8)


def _warp(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Of `size`: [H, W, 3] beyond whose border it is mirrored, or a plane [H, W] with nothing beyond."""
    border = cv2.BORDER_REFLECT_101 if pixels.ndim == 3 else cv2.BORDER_CONSTANT
    return cv2.warpAffine(pixels, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border)


# --- drawn defects ---------------------------------------------------------------------------------------


class Synthetic:
    """Draws defects into the normal ones among `rows` (all of images.csv), in each epoch others.

    Only for data whose images are either normal or defective: a drawn defect belongs to no class. Raises
    UserError where all rows are normal: a detector that learns from these takes all of it for normal.
    """

    def __init__(self, rows: pd.DataFrame, probability: float, seed: int):
        self.is_normal = (rows["label"] == 0).tolist()
        self.probability = probability
        self.seed = seed
        if all(self.is_normal):
            raise UserError(
                f"train.synthetic={probability} draws what counts as defective, but only normal images are "
                "learnt from: set it to 0"
            )

    def __call__(
        self, epoch: int, row: int, image: np.ndarray, inside: np.ndarray | None = None
    ) -> AddedDefect | None:
        """`image`, uint8 [H, W, 3] of this row, with a defect drawn into it; None if none is.

        With `inside`, bool [H, W], around what is True there: some of the defect may still lie beside it.
        """
        random = np.random.default_rng(derive_seed(self.seed, epoch, row, SYNTHETIC_KEY))
        if not self.is_normal[row] or random.random() >= self.probability:
            return None
        place = bounding_box(inside, image.shape[:2])
        mixed = image.copy()
        mask = np.zeros(image.shape[:2], np.uint8)
        mixed[place], mask[place] = draw_defect(image[place], random)
        return AddedDefect(mixed, mask[..., None], np.ones(1, np.float32))


def draw_defect(image: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] with a defect drawn into it, and its mask, uint8 [H, W], which is never empty."""
    draw_shape = _draw_line if random.random() < LINES else _draw_blot
    weight = _soften(draw_shape(image.shape[:2], random), random)
    fill = FILLS[random.integers(len(FILLS))](image.astype(np.float32), random)
    mixed = image + weight[..., None] * (fill - image)
    return np.rint(mixed).clip(0, 255).astype(np.uint8), (weight > DRAWN_MASK_SHARE).astype(np.uint8)


def _draw_blot(size: tuple[int, int], random: Generator) -> np.ndarray:
    """uint8 [H, W]: a filled outline around a random point, an ellipse with waves."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = np.arange(1, WAVES + 1)
    heights = random.normal(0, 0.25, WAVES) / waves
    phases = random.uniform(0, 2 * np.pi, WAVES)
    outline = np.exp((heights * np.cos(angles[:, None] * waves + phases)).sum(1))
    radius = _log_uniform(random, RADII) * min(size)
    stretch = np.exp(random.uniform(-1, 1) * STRETCHED / 2)
    points = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], 1) * (radius * outline)[:, None]
    rotation = cv2.getRotationMatrix2D((0, 0), random.uniform(0, 360), 1.0)[:, :2]
    points = points @ rotation.T + random.uniform(0, 1, 2) * (size[1] - 1, size[0] - 1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [np.rint(points).astype(np.int32)], 1)


def _draw_line(size: tuple[int, int], random: Generator) -> np.ndarray:
    """uint8 [H, W]: a wandering line from a random point."""
    steps = random.integers(6, 40)
    shorter_side = min(size)
    angles = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, random.uniform(0.02, 0.4), steps))
    start = random.uniform(0, 1, 2) * (size[1] - 1, size[0] - 1)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    points = np.vstack([start, start + np.cumsum(directions, axis=0) * 0.02 * shorter_side])
    thickness = max(1, round(_log_uniform(random, (1 / 256, 1 / 40)) * shorter_side))
    return cv2.polylines(np.zeros(size, np.uint8), [np.rint(points).astype(np.int32)], False, 1, thickness)


def _soften(shape: np.ndarray, random: Generator) -> np.ndarray:
    """float32 [H, W], at most 1: with an edge of a few pixels, since soft shades are what light makes."""
    softest = max(SHARPEST, SOFTEST * min(shape.shape))
    weight = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), random.uniform(SHARPEST, softest))
    return weight / weight.max()


def _shade(image: np.ndarray, random: Generator) -> np.ndarray:
    """The same surface, darker or brighter."""
    return image * random.uniform(*(DARK, BRIGHT)[random.integers(2)])


def _flatten(image: np.ndarray, random: Generator) -> np.ndarray:
    """The surface's brightness without its texture, darker or brighter."""
    smooth = cv2.GaussianBlur(image, (0, 0), 0.05 * min(image.shape[:2]))
    return _shade(smooth, random) + random.normal(0, random.uniform(0, 8), (*image.shape[:2], 1))


FILLS: list[Callable[[np.ndarray, Generator], np.ndarray]] = [_shade, _flatten]


def _log_uniform(random: Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(random.uniform(*np.log(limits))))
