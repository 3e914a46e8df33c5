"""Where synthetic anomalies take their looks from: a folder of textures, or textures drawn on the spot."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree

from defects.data.folder_scan import list_images
from defects.data.images import read_image
from defects.data.junk import list_folders
from defects.data.transforms import rotate_flip
from defects.errors import UserError
from defects.models.parts.perlin import perlin_noise

TextureSource = Callable[[np.ndarray], np.ndarray]  # image -> texture, both uint8 RGB [H, W, 3]


class FolderTextures:
    """Any image under `folder`, or under its sub-folders `classes` (as in DTD), brought to the image's size.

    Raises UserError for a folder without images, and for unknown classes, naming those that exist.
    """

    def __init__(self, folder: Path, classes: list[str]):
        if not folder.is_dir():
            raise UserError(f"model.options.textures={folder}: no such folder; leave it out to draw textures")
        known = [path.name for path in list_folders(folder)]
        unknown = sorted(set(classes) - set(known))
        if unknown:
            raise UserError(
                f"model.options.texture_classes: {folder} has no {', '.join(unknown)}; "
                f"it has {', '.join(known) or 'no sub-folders'}"
            )
        try:
            self.paths = [path for name in classes or [""] for path in list_images(folder / name)]
        except UserError as error:
            raise UserError(f"model.options.textures: {error}; leave it out to draw textures") from None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return read_image(self.paths[np.random.randint(len(self.paths))], image.shape[:2])


def drawn_texture(image: np.ndarray) -> np.ndarray:
    """A texture of a family drawn at random; it takes the place of DTD where that is not to be had."""
    families = [_clouds, _stripes, _checkers, _speckle, _cells]
    chosen = np.random.randint(len(families) + 1)
    if chosen == len(families):
        return _rearranged(image)
    return _coloured(families[chosen](image.shape[:2]))


def _clouds(size: tuple[int, int]) -> np.ndarray:
    """Perlin noise of some octaves."""
    octaves = np.random.randint(1, 5)
    first = np.random.randint(0, 4)
    layers = (perlin_noise(size, (2**k, 2**k)) / 2 ** (k - first) for k in range(first, first + octaves))
    return sum(layers)


def _stripes(size: tuple[int, int]) -> np.ndarray:
    """Waves of any direction, from soft to sharp-edged, bent by noise."""
    y, x = np.indices(size, dtype=np.float32) / min(size)
    direction, waves = np.random.uniform(0, np.pi), 2 ** np.random.uniform(1, 5)
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


def _coloured(pattern: np.ndarray) -> np.ndarray:
    """[h, w] of any range -> uint8 [h, w, 3] along a ramp of two to four random colours."""
    low, high = pattern.min(), pattern.max()
    levels = ((pattern - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    stops = np.random.randint(0, 256, (np.random.randint(2, 5), 3))
    positions = np.linspace(0, 255, len(stops))
    ramp = np.stack([np.interp(np.arange(256), positions, channel) for channel in stops.T], axis=-1)
    return ramp.astype(np.uint8)[levels]


def _rearranged(image: np.ndarray) -> np.ndarray:
    """The image itself with its tiles shuffled, rolled and turned: the right material in the wrong place."""
    height, width = image.shape[:2]
    tiles = np.random.randint(1, 9)
    rows, columns = (np.array_split(np.arange(side), tiles) for side in (height, width))
    rows = np.concatenate([rows[i] for i in np.random.permutation(tiles)])
    columns = np.concatenate([columns[i] for i in np.random.permutation(tiles)])
    rolled = np.roll(image[rows][:, columns], (np.random.randint(height), np.random.randint(width)), (0, 1))
    return rotate_flip(rolled, np.random.uniform(-180, 180), "none")
