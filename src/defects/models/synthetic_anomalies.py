"""Synthetic anomalies: foreign texture blended into a normal image inside a Perlin mask (DRAEM, 3.3).

All of it draws from numpy's global generator, which is seeded for every epoch.
"""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree
from torchvision.transforms.v2 import functional

from defects.data.folder_scan import list_images
from defects.data.images import read_image
from defects.data.transforms import rotate_flip
from defects.messages import UserError

MOST_OF_ORIGINAL = 0.8  # the image keeps up to this share inside the mask
OPERATIONS = 3  # of the ten below, on each texture

TextureSource = Callable[[np.ndarray], np.ndarray]  # image -> texture, both uint8 RGB [H, W, 3]


def paste_anomaly(image: np.ndarray, source: TextureSource) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB [H, W, 3] -> the image with an anomaly in it, and its mask bool [H, W], which may be empty.

    The result stays in whole grey levels as photographs do: fractions would give the place away. A grey
    image gets a grey texture for the same reason.
    """
    mask = perlin_mask(image.shape[:2])
    texture = distort(source(image))
    if (image == image[..., :1]).all():
        texture = np.repeat(texture.mean(axis=2, keepdims=True), 3, axis=2)
    opacity = np.random.uniform(0, MOST_OF_ORIGINAL)
    mixed = image.copy()
    mixed[mask] = np.rint(opacity * image[mask] + (1 - opacity) * texture[mask])
    return mixed, mask


def distort(texture: np.ndarray) -> np.ndarray:
    """Three different ones of the paper's ten operations on uint8 RGB [H, W, 3], each drawn anew."""
    pixels = torch.from_numpy(np.ascontiguousarray(texture)).permute(2, 0, 1)
    for index in np.random.choice(len(_OPERATIONS), OPERATIONS, replace=False):
        pixels = _OPERATIONS[index](pixels)
    return pixels.permute(1, 2, 0).numpy()


def _gamma(pixels: torch.Tensor) -> torch.Tensor:
    gammas = np.random.uniform(0.5, 2.0, len(pixels))
    channels = zip(pixels.split(1), gammas, strict=True)
    return torch.cat([functional.adjust_gamma(channel, gamma) for channel, gamma in channels])


def _brightness(pixels: torch.Tensor) -> torch.Tensor:
    factor = np.random.uniform(0.8, 1.2)
    shift = np.random.uniform(-30, 30)
    return (pixels * factor + shift).round().clamp(0, 255).byte()


def _sharpness(pixels: torch.Tensor) -> torch.Tensor:
    return functional.adjust_sharpness(pixels, np.random.uniform(0, 3))


def _hue_saturation(pixels: torch.Tensor) -> torch.Tensor:
    shifted = functional.adjust_hue(pixels, np.random.uniform(-0.2, 0.2))
    return functional.adjust_saturation(shifted, np.random.uniform(0.5, 1.5))


def _solarise(pixels: torch.Tensor) -> torch.Tensor:
    return functional.solarize(pixels, np.random.uniform(32, 128))


def _posterise(pixels: torch.Tensor) -> torch.Tensor:
    return functional.posterize(pixels, np.random.randint(1, 8))


def _affine(pixels: torch.Tensor) -> torch.Tensor:
    rotated = rotate_flip(pixels.permute(1, 2, 0).numpy(), np.random.uniform(-45, 45), "none")
    return torch.from_numpy(rotated).permute(2, 0, 1)


_OPERATIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    _gamma,
    _brightness,
    _sharpness,
    _hue_saturation,
    _solarise,
    _posterise,
    functional.invert,
    functional.autocontrast,
    functional.equalize,
    _affine,
]


# --- textures ---


class FolderTextures:
    """Any image below `folder`, brought to the size of the image. Raises UserError if it holds none."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"model.options.textures={folder}: no such folder; leave it out to draw textures")
        try:
            self.paths = list_images(folder)
        except UserError as error:
            raise UserError(f"model.options.textures: {error}; leave it out to draw textures") from None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        path = self.paths[np.random.randint(len(self.paths))]
        return read_image(path, image.shape[:2])


def draw_texture(image: np.ndarray) -> np.ndarray:
    """A texture uint8 [H, W, 3] of a random family; in place of DTD's photographs where there are none."""
    families = [_clouds, _stripes, _checkers, _speckle, _cells]
    chosen = np.random.randint(len(families) + 1)
    if chosen == len(families):
        return _rearrange(image)
    return _colour(families[chosen](image.shape[:2]))


def _clouds(size: tuple[int, int]) -> np.ndarray:
    """Perlin noise of some octaves."""
    octaves = np.random.randint(1, 5)
    first = np.random.randint(0, 4)
    return sum(perlin_noise(size, (2**k, 2**k)) / 2 ** (k - first) for k in range(first, first + octaves))


def _stripes(size: tuple[int, int]) -> np.ndarray:
    """Waves of any direction, from soft to sharp-edged, bent by noise."""
    y, x = np.indices(size, dtype=np.float32) / min(size)
    direction = np.random.uniform(0, np.pi)
    waves = 2 ** np.random.uniform(1, 5)
    bend = np.random.uniform(0, 0.2) * perlin_noise(size, (3, 3))
    phase = x * np.cos(direction) + y * np.sin(direction) + bend
    return np.tanh(np.random.uniform(0.5, 6) * np.sin(2 * np.pi * (waves * phase + np.random.rand())))


def _checkers(size: tuple[int, int]) -> np.ndarray:
    return _stripes(size) * _stripes(size)


def _speckle(size: tuple[int, int]) -> np.ndarray:
    """Noise of a grain from a pixel up, drawn out along one axis or not."""
    grain = 2 ** np.random.uniform(-1, 3, 2)
    return cv2.GaussianBlur(np.random.normal(size=size), (0, 0), *grain)


def _cells(size: tuple[int, int]) -> np.ndarray:
    """Cells about random points: flat ones, or shaded by the distance to the next border."""
    points = np.random.rand(np.random.randint(8, 200), 2) * size
    pixels = np.stack(np.indices(size), axis=-1)
    distances, cell = cKDTree(points).query(pixels, k=2)
    if np.random.rand() < 0.5:
        return np.random.rand(len(points))[cell[..., 0]]
    return np.sqrt(distances[..., 1] - distances[..., 0])


def _colour(pattern: np.ndarray) -> np.ndarray:
    """[h, w] of any range -> uint8 [h, w, 3] along a ramp of two to four random colours."""
    low = pattern.min()
    high = pattern.max()
    levels = ((pattern - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    stops = np.random.randint(0, 256, (np.random.randint(2, 5), 3))
    positions = np.linspace(0, 255, len(stops))
    ramp = np.stack([np.interp(np.arange(256), positions, channel) for channel in stops.T], axis=-1)
    return ramp.astype(np.uint8)[levels]


def _rearrange(image: np.ndarray) -> np.ndarray:
    """The image itself with its tiles shuffled, rolled and rotated: the right material in the wrong place."""
    height, width = image.shape[:2]
    tiles = np.random.randint(1, 9)
    rows, columns = (np.array_split(np.arange(side), tiles) for side in (height, width))
    rows = np.concatenate([rows[i] for i in np.random.permutation(tiles)])
    columns = np.concatenate([columns[i] for i in np.random.permutation(tiles)])
    rolled = np.roll(image[rows][:, columns], (np.random.randint(height), np.random.randint(width)), (0, 1))
    return rotate_flip(rolled, np.random.uniform(-180, 180), "none")


# --- Perlin noise ---


def perlin_noise(size: tuple[int, int], scales: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """Gradient noise float32 [h, w], about -1 to 1: 0 at the lattice points, isotropic between them.

    Perlin 1985 with the quintic fade of Perlin 2002, "Improving noise", and random unit gradients, times
    the square root of two, as DRAEM (Zavrtanik et al. 2021) thresholds it. `size` = (height, width) in
    pixels holds `scales` = (rows, columns) of lattice cells, which need not divide it; the lattice is rotated
    by `angle` degrees about the image's centre.
    """
    y, x = _lattice_coordinates(size, scales, angle)
    y, row = np.modf(y)
    x, column = np.modf(x)
    row = row.astype(int)
    column = column.astype(int)
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
    spans two pixels at least: on smaller ones the noise is 0 in every pixel); the lattice is rotated by up to
    `rotate` degrees either way. The published code rotates the finished mask, which leaves its corners empty.
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
        centre = ((width - 1) / 2, (height - 1) / 2)
        rotation = cv2.getRotationMatrix2D(centre, angle, 1.0).astype(np.float32)
        pixels = np.stack([columns, rows, np.ones_like(rows)])
        columns, rows = np.tensordot(rotation, pixels, axes=1)
    y = rows * np.float32(scales[0] / height)
    x = columns * np.float32(scales[1] / width)
    return y - np.floor(y.min()), x - np.floor(x.min())


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * t * (t * (t * 6 - 15) + 10)


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + share * (b - a)
