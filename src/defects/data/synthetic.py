"""Synthetic defects: normal training images that get a drawn one count as defective.

Thirty real defects show a network a handful of shapes. Drawn ones are of every shape: blots and lines, inside
the image or cut by its border, darker or brighter than the surface, with its texture or without (as CutPaste,
Li et al. 2021, arXiv 2104.04015, and NSA, Schlueter et al. 2022, arXiv 2109.15222, make theirs). Each is made
of the image's own pixels, so no outside data is needed.
"""

from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator

from defects.data.paste import Pasted
from defects.messages import UserError
from defects.numerics import derive_seed

KEY = 3  # of its random numbers, which are none of the augmentation's
VISIBLE = 0.35  # share of the full change from which a pixel belongs to the mask
LINES = 0.4  # of all defects
RADII = (0.02, 0.35)  # of a blot, times the shorter side
STRETCHED = 0.8  # log of the largest ratio of a blot's sides
DARK, BRIGHT = (0.3, 0.75), (1.35, 2.0)  # factors of brightness
SHARPEST, SOFTEST = 0.4, 0.01  # deviation of an edge: in pixels, times the shorter side
WAVES = 8  # of which an outline is made


class Synthetic:
    """Draws defects into the normal ones among `rows` (all of images.csv), each epoch others.

    Only for data whose images are either normal or defective: a drawn defect belongs to no class. Raises
    UserError where all rows are normal: a detector that learns from these takes what it sees for normal.
    """

    def __init__(self, rows: pd.DataFrame, probability: float, seed: int):
        self.normal, self.probability, self.seed = (rows["label"] == 0).tolist(), probability, seed
        if all(self.normal):
            raise UserError(
                f"train.synthetic={probability} draws what counts as defective, but only normal images are "
                "learnt from: set it to 0"
            )

    def __call__(self, epoch: int, row: int, image: np.ndarray) -> Pasted | None:
        """`image`, uint8 [H, W, 3] of this row, with a defect drawn into it; None if none is."""
        random = np.random.default_rng(derive_seed(self.seed, epoch, row, KEY))
        if not self.normal[row] or random.random() >= self.probability:
            return None
        mixed, mask = drawn(image, random)
        return Pasted(mixed, mask[..., None], np.ones(1, np.float32))


def drawn(image: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] with a defect drawn into it, and its mask, uint8 [H, W], which is never empty."""
    shape = _line if random.random() < LINES else _blot
    weight = _softened(shape(image.shape[:2], random), random)
    fill = FILLS[random.integers(len(FILLS))](image.astype(np.float32), random)
    mixed = image + weight[..., None] * (fill - image)
    return np.rint(mixed).clip(0, 255).astype(np.uint8), (weight > VISIBLE).astype(np.uint8)


def _blot(size: tuple[int, int], random: Generator) -> np.ndarray:
    """uint8 [H, W]: a filled outline around a random point, an ellipse with waves."""
    angles, waves = np.linspace(0, 2 * np.pi, 72, endpoint=False), np.arange(1, WAVES + 1)
    heights, phases = random.normal(0, 0.25, WAVES) / waves, random.uniform(0, 2 * np.pi, WAVES)
    outline = np.exp((heights * np.cos(angles[:, None] * waves + phases)).sum(1))
    radius, stretch = _log_uniform(random, RADII) * min(size), np.exp(random.uniform(-1, 1) * STRETCHED / 2)
    points = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], 1) * (radius * outline)[:, None]
    turn = cv2.getRotationMatrix2D((0, 0), random.uniform(0, 360), 1.0)[:, :2]
    points = points @ turn.T + random.uniform(0, 1, 2) * (size[1] - 1, size[0] - 1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [np.rint(points).astype(np.int32)], 1)


def _line(size: tuple[int, int], random: Generator) -> np.ndarray:
    """uint8 [H, W]: a wandering line from a random point."""
    steps, side = random.integers(6, 40), min(size)
    angles = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, random.uniform(0.02, 0.4), steps))
    start = random.uniform(0, 1, 2) * (size[1] - 1, size[0] - 1)
    points = start + np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), axis=0) * 0.02 * side
    points = np.vstack([start, points])
    thickness = max(1, round(_log_uniform(random, (1 / 256, 1 / 40)) * side))
    return cv2.polylines(np.zeros(size, np.uint8), [np.rint(points).astype(np.int32)], False, 1, thickness)


def _softened(shape: np.ndarray, random: Generator) -> np.ndarray:
    """float32 [H, W], at most 1: with an edge of a few pixels, since soft shades are what light makes."""
    softest = max(SHARPEST, SOFTEST * min(shape.shape))
    weight = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), random.uniform(SHARPEST, softest))
    return weight / weight.max()


def _shade(image: np.ndarray, random: Generator) -> np.ndarray:
    """The same surface, darker or brighter."""
    return image * random.uniform(*(DARK, BRIGHT)[random.integers(2)])


def _flat(image: np.ndarray, random: Generator) -> np.ndarray:
    """The surface's brightness without its texture, darker or brighter."""
    smooth = cv2.GaussianBlur(image, (0, 0), 0.05 * min(image.shape[:2]))
    return _shade(smooth, random) + random.normal(0, random.uniform(0, 8), (*image.shape[:2], 1))


FILLS: list[Callable[[np.ndarray, Generator], np.ndarray]] = [_shade, _flat]


def _log_uniform(random: Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(random.uniform(*np.log(limits))))
