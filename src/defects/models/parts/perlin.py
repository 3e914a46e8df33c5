"""Perlin noise, and the blotchy masks that synthetic anomalies are cut out with."""

import math

import cv2
import numpy as np


def perlin_noise(size: tuple[int, int], scales: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """Gradient noise float32 [h, w], about -1 to 1: 0 at the lattice points, isotropic between them.

    Perlin 1985 with the quintic fade of Perlin 2002, "Improving noise", and random unit gradients, times
    the square root of two, as DRAEM (Zavrtanik et al. 2021) thresholds it. `size` = (height, width) in
    pixels holds `scales` = (rows, columns) of lattice cells, which need not divide it; the lattice is turned
    by `angle` degrees about the image's centre. Draws from numpy's global generator.
    """
    y, x = _lattice_coordinates(size, scales, angle)
    (y, row), (x, column) = np.modf(y), np.modf(x)
    row, column = row.astype(int), column.astype(int)
    angles = np.random.uniform(0, 2 * np.pi, (row.max() + 2, column.max() + 2)).astype(np.float32)
    gradients = np.stack([np.sin(angles), np.cos(angles)], axis=-1)

    def from_corner(down: int, right: int) -> np.ndarray:
        gradient = gradients[row + down, column + right]
        return gradient[..., 0] * (y - down) + gradient[..., 1] * (x - right)

    across = _fade(x)
    top = _mix(from_corner(0, 0), from_corner(0, 1), across)
    bottom = _mix(from_corner(1, 0), from_corner(1, 1), across)
    return np.float32(math.sqrt(2)) * _mix(top, bottom, _fade(y))


def perlin_mask(
    size: tuple[int, int], threshold: float = 0.5, max_scale_power: int = 6, rotate: float = 90.0
) -> np.ndarray:
    """bool [h, w]: noise above `threshold`; may be empty. DRAEM, section 3.3.

    Each axis has 2^k cells along the shorter side, k drawn below `max_scale_power` (and so that a cell
    spans two pixels at least: on smaller ones the noise is 0 in every pixel); the lattice is turned by up to
    `rotate` degrees either way. The published code turns the finished mask, which leaves its corners empty.
    """
    shorter = min(size)
    powers = max(1, min(max_scale_power, int(math.log2(shorter))))
    cells = [2 ** np.random.randint(powers) * side / shorter for side in size]
    return perlin_noise(size, tuple(cells), np.random.uniform(-rotate, rotate)) > threshold


def _lattice_coordinates(
    size: tuple[int, int], scales: tuple[float, float], angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel, in cells, from a lattice point on; both [h, w] and not negative."""
    height, width = size
    rows, columns = np.indices(size, dtype=np.float32)
    if angle:
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0).astype(np.float32)
        pixels = np.stack([columns, rows, np.ones_like(rows)])
        columns, rows = np.tensordot(turn, pixels, axes=1)
    y, x = rows * np.float32(scales[0] / height), columns * np.float32(scales[1] / width)
    return y - np.floor(y.min()), x - np.floor(x.min())


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * t * (t * (t * 6 - 15) + 10)


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + share * (b - a)
