"""Regions of interest: for each image the pixels that are judged, bool [H, W], True inside.

A pixel of a smaller or larger copy of an image is inside if nothing outside has a part in it, so that what
lies outside reaches no network through resizing. Neither torch nor pandas is imported.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import list_images
from defects.data.images import covered, read_image, read_image_and_shape, resize
from defects.data.mask_files import read_mask
from defects.data.roi_settings import RoiSettings
from defects.messages import UserError, shorten_names

SIZES_IN_MEMORY = 16  # of images, for which regions that all share are not drawn again
NOTHING = 1e-6  # share of a pixel that may come from outside: too little to change a grey level
CORNER = 0.5 - 1e-6  # pixels from the centre of a pixel to its sides
BLUR_SHARE = 0.01  # deviation of the blur before Otsu's threshold, times the shorter side
GAP_SHARE = 0.03  # width of lines that are left out and of gaps that are closed, times the shorter side
SMALLEST_PART = 0.25  # of the area of the largest part, from which a part of the foreground is kept


class Roi:
    """The region of interest of the images of a data set. Reading is safe in threads and processes.

    `image_size`: (height, width) at which foregrounds are found, that of the network.
    """

    def __init__(self, settings: RoiSettings, root: Path, image_size: tuple[int, int], bits: int | None):
        self.settings = settings
        self.root = root
        self.image_size = image_size
        self.bits = bits
        source = settings.locate_masks(root)
        self.mask = None if settings.mask is None else read_mask(source)
        self.masks = None if settings.folder is None else list_roi_masks(source)
        self.fixed: dict[tuple[int, int], np.ndarray] = {}  # by size; regions of all images alike

    def read(self, path: str, size: tuple[int, int], image: np.ndarray | None = None) -> np.ndarray:
        """bool of `size` (height, width), for the image at `path`, relative to the root.

        `image`: its pixels, uint8 [H, W, 3] of `image_size`, if they are there already. Raises UserError if
        nothing is left of what the network sees, or if there is no mask.
        """
        inside = self._find(path, size, image)
        if size == self.image_size and not inside.any():
            height, width = size
            raise UserError(
                f"data.roi leaves nothing of {path} at {height}x{width} pixels: correct it, or raise "
                "data.image_size"
            )
        return inside

    def read_image(self, path: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The image at `path` as networks see it, uint8 [H, W, 3] of `size`, and bool [H, W]: what is judged.

        The rest of the image has the mean colour of that.
        """
        image, shape = read_image_and_shape(self.root / path, size, self.bits)
        inside = self.read(path, size, image)
        if self.settings.is_fixed and is_enlarged(shape, size):
            image = enlarge_inside(read_image(self.root / path, bits=self.bits), inside)
        return covered(image, ~inside), inside

    def _find(self, path: str, size: tuple[int, int], image: np.ndarray | None) -> np.ndarray:
        if self.settings.is_fixed:
            inside = self.fixed.get(size)
            if inside is None:
                inside = self._draw_fixed(size)
                if size == self.image_size or len(self.fixed) < SIZES_IN_MEMORY:
                    self.fixed[size] = inside
            return inside
        if self.settings.folder is not None:
            return scale_inside(read_mask(self.find_mask(path)), size)
        if image is None:
            image = read_image(self.root / path, self.image_size, self.bits)
        return scale_inside(find_foreground(image, self.settings.foreground), size)

    def find_mask(self, path: str) -> Path:
        """Of `folder`, for an image. Raises UserError if it has none."""
        return find_roi_mask(self.masks, path, f"data.roi.folder={self.settings.folder}")

    def _draw_fixed(self, size: tuple[int, int]) -> np.ndarray:
        corners = self.settings.corners
        return scale_inside(self.mask, size) if corners is None else draw_inside(corners, size)


def load_roi(data: DataConfig) -> Roi | None:
    """None where all of every image is judged. Raises UserError for files that cannot be read."""
    if data.roi is None:
        return None
    root = resolve(data.root)
    path = data.roi.locate_masks(root)
    if path is not None and not path.exists():
        raise UserError(_explain_missing(data.roi, root, path))
    changed = 0 if path is None else path.stat().st_mtime_ns
    return _load_roi(data.roi.model_dump_json(), root, data.image_size, data.bits, changed)


def _explain_missing(settings: RoiSettings, root: Path, path: Path) -> str:
    """Also where the path was meant to start at the repository, as it did in earlier versions."""
    name = "mask" if settings.mask else "folder"
    written = settings.mask or settings.folder
    text = f"data.roi.{name}={written}: {path} does not exist; paths start at data.root"
    of_repository = resolve(written)
    if not of_repository.exists():
        return f"{text}: correct it"
    is_below = of_repository.is_relative_to(root)
    advice = of_repository.relative_to(root).as_posix() if is_below else of_repository
    return f"{text}, not at the repository: write {advice}"


@lru_cache(maxsize=4)
def _load_roi(settings: str, root: Path, image_size: tuple[int, int], bits: int | None, changed: int) -> Roi:
    """`changed`: when the file or folder was, so that another one is read again."""
    return Roi(RoiSettings.model_validate_json(settings), root, image_size, bits)


def find_roi_mask(masks: dict[str, Path], path: str, folder: str) -> Path:
    """Of those of list_roi_masks: `a/b/c` for the image a/b/c.png, else `b/c`, else `c`.

    Raises UserError, with `folder` as people know it, if there is none.
    """
    parts = PurePosixPath(path).with_suffix("").parts
    for start in range(len(parts)):
        mask = masks.get("/".join(parts[start:]))
        if mask is not None:
            return mask
    raise UserError(f"{folder} holds no mask for {path}: add an image named {parts[-1]}")


def list_roi_masks(folder: Path) -> dict[str, Path]:
    """The images of a folder by their path below it, without suffix. Raises UserError for repeated names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds a mask for each image")
    masks: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in masks:
            raise UserError(f"{masks[name]} and {path} are both masks of {name}: remove one")
        masks[name] = path
    return masks


def refuse_shared_masks(masks: dict[str, Path], paths: Iterable[str], folder: str) -> None:
    """Raises UserError, with `folder` as people know it, if a mask is named like several of the images."""
    counts: Counter[Path] = Counter()
    for path in paths:
        try:
            counts[find_roi_mask(masks, path, folder)] += 1
        except UserError:
            continue  # said of each image by whoever reads its mask
    shared = [mask for mask, count in counts.items() if count > 1]
    if shared:
        raise UserError(
            f"{len(shared)} masks of {folder} are named like several images ({shorten_names(shared)}): put "
            "masks into folders named like those of the images"
        )


def scale_inside(inside: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] for a copy of the image of `size` (height, width)."""
    if inside.shape == tuple(size):
        return inside
    return resize((~inside).astype(np.float32), size) < NOTHING


def is_enlarged(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether an image of `shape` (height, width) that is brought to `size` is enlarged in any direction."""
    return shape[0] < size[0] or shape[1] < size[1]


def enlarge_inside(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """An image [H, W] or [H, W, C] brought to the size of `inside` bool [h, w], of what lies in it alone.

    Enlarging mixes pixels next to each other, also those on both sides of the border of a region that is the
    same for images of all sizes.
    """
    judged = scale_inside(inside, image.shape[:2])
    return resize(covered(image, ~judged) if judged.any() else image, inside.shape)


def clear_plane(plane: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """A map [h, w] of probabilities at the size of its image, 0 outside bool [H, W]; itself without."""
    if inside is None:
        return plane
    return resize(plane.astype(np.float32), inside.shape) * inside


def draw_inside(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool of `size`: pixels with all four corners within the polygon [N, 2], in parts of the image."""
    from defects.data.annotations.shapes import count_windings  # needs pandas; prediction draws nothing

    points = corners * np.array([size[1], size[0]])
    inside = np.ones(size, bool)
    for across in (-CORNER, CORNER):
        for down in (-CORNER, CORNER):
            inside &= count_windings(points - np.array([across, down]), size) % 2 == 1
    return inside


def find_foreground(image: np.ndarray, foreground: str) -> np.ndarray:
    """bool [H, W]: what stands out of a background that is dark (`on_dark`) or bright, in uint8 [H, W, 3].

    Otsu's threshold of the blurred grey levels. What is thinner than a gap is left out, parts a gap apart are
    joined, and parts smaller than SMALLEST_PART of the largest are left out. Of the others the convex hull is
    judged: a hole or a broken edge looks like the background, and is what is looked for.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shorter_side = min(grey.shape)
    blurred = cv2.GaussianBlur(grey, (0, 0), max(0.5, BLUR_SHARE * shorter_side))
    kind = cv2.THRESH_BINARY if foreground == "on_dark" else cv2.THRESH_BINARY_INV
    _, mask = cv2.threshold(blurred, 0, 1, kind | cv2.THRESH_OTSU)
    gap = max(1, round(GAP_SHARE * shorter_side / 2))
    margin = 2 * gap  # continued beyond the border, where parts may end
    mask = cv2.copyMakeBorder(mask, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * gap + 1, 2 * gap + 1))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc)[margin:-margin, margin:-margin].copy()
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    inside = np.zeros_like(grey)
    for outline, area in zip(outlines, areas, strict=True):
        if area >= SMALLEST_PART * max(areas):
            cv2.fillConvexPoly(inside, cv2.convexHull(outline), 1)
    return inside > 0


def summarise_shares(shares: Iterable[float]) -> str:
    """`40% of each image`, or `31% to 62% of an image, 44% at the median`."""
    values = np.array(list(shares))
    low = f"{values.min():.0%}"
    high = f"{values.max():.0%}"
    if low == high:
        return f"{low} of each image"
    return f"{low} to {high} of an image, {np.median(values):.0%} at the median"
