"""What annotation tools draw around defects, and the pixels that it marks.

Coordinates are x and y from the upper left corner of the image: the first pixel reaches from 0 to 1. A pixel
is marked if its centre lies inside. What a polygon encloses twice lies outside, as tools have it themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from defects.data.rle import decode

Kind = Literal["polygon", "box", "mask", "line"]
Fault = Literal["too few points", "outside", "clipped", "crossing", "nearly all"]
ELLIPSE_POINTS = 180
LARGEST_COORDINATE = 10**9
TOLERANCE_PIXELS = 1.0  # by which tools let a shape reach over the border of its image


@dataclass(frozen=True)
class Shape:
    """One marked area: `points` float [N, 2], x and y, or `runs`, a mask of the image (defects.data.rle).

    `category` is "" where the tool names none.
    """

    category: str
    kind: Kind
    points: np.ndarray | None = None
    runs: str = ""


@dataclass(frozen=True)
class AnnotatedImage:
    """What a tool says of one image: `shapes` is empty where it was looked at and nothing is marked.

    `names`: what may be its id, its path or its file name, the surest first. `size`: height and width in
    pixels as the tool states them. `is_relative`: points are parts of width and height, not pixels.
    """

    names: tuple[str, ...]
    shapes: list[Shape]
    source: Path  # the file that says so
    size: tuple[int, int] | None = None
    is_relative: bool = False


@dataclass
class Annotations:
    """All that the files of one format under `path` say. `notes` are lines for the inventory."""

    path: Path
    format: str  # as people write it: COCO, YOLO, ...
    images: list[AnnotatedImage]
    files: list[Path]
    lists_normal: bool = True  # False: an image that it does not name is a normal one
    notes: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> list[Shape]:
        return [shape for image in self.images for shape in image.shapes]


class Drawing(NamedTuple):
    """bool [H, W], and what was wrong with the shapes."""

    mask: np.ndarray
    faults: frozenset[Fault]


def box_shape(category: str, left: float, top: float, right: float, bottom: float) -> Shape:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return Shape(category, "box", np.array(corners, float))


def ellipse_points(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0
) -> np.ndarray:
    """float [ELLIPSE_POINTS, 2] on an ellipse that is rotated clockwise, as images are seen."""
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    across = radii[0] * np.cos(angles)
    down = radii[1] * np.sin(angles)
    return np.array(centre) + rotate_points(np.stack([across, down], axis=1), degrees)


def rotate_points(points: np.ndarray, degrees: float) -> np.ndarray:
    """[N, 2] around (0, 0), clockwise as images are seen."""
    cosine = np.cos(np.radians(degrees))
    sine = np.sin(np.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def as_points(values: Any) -> np.ndarray:
    """float [N, 2] of pairs or of x, y, x, y, ... Raises ValueError for what are no finite numbers."""
    try:
        numbers = np.array(values, float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("coordinates that are no numbers") from None
    if numbers.ndim == 2 and numbers.size and numbers.shape[1] != 2:
        raise ValueError(f"points of {numbers.shape[1]} coordinates in place of 2")
    numbers = numbers.ravel()
    if len(numbers) % 2:
        raise ValueError(f"an odd number of coordinates ({len(numbers)})")
    if not np.isfinite(numbers).all():
        raise ValueError("coordinates that are no finite numbers")
    if np.abs(numbers).max(initial=0) > LARGEST_COORDINATE:
        raise ValueError(f"coordinates beyond {LARGEST_COORDINATE:,}, which no image has")
    return numbers.reshape(-1, 2)


def draw_shapes(shapes: Iterable[Shape], size: tuple[int, int], is_relative: bool = False) -> Drawing:
    """What the shapes mark together in an image of `size` (height, width).

    Raises ValueError, with a short reason, for runs that are no mask of such an image.
    """
    united = np.zeros(size, bool)
    faults: set[Fault] = set()
    for shape in shapes:
        if shape.points is None:
            united |= decode(shape.runs, size).astype(bool)
            continue
        points = shape.points * np.array([size[1], size[0]]) if is_relative else shape.points
        mask, shape_faults = _draw_outline(points, size)
        united |= mask
        faults |= shape_faults
    return Drawing(united, frozenset(faults))


def _draw_outline(points: np.ndarray, size: tuple[int, int]) -> Drawing:
    height, width = size
    if len(np.unique(points, axis=0)) < 3:
        return Drawing(np.zeros(size, bool), frozenset({"too few points"}))
    lowest = points.min(axis=0)
    highest = points.max(axis=0)
    borders = np.array([width, height])
    if (highest <= 0).any() or (lowest >= borders).any():
        return Drawing(np.zeros(size, bool), frozenset({"outside"}))
    faults: set[Fault] = set()
    if (lowest < -TOLERANCE_PIXELS).any() or (highest > borders + TOLERANCE_PIXELS).any():
        faults.add("clipped")
    windings = count_windings(points, size)
    if len(np.unique(windings[windings != 0])) > 1:
        faults.add("crossing")
    mask = windings % 2 == 1
    if not mask.any():  # thinner than a pixel
        columns, rows = np.clip(points, 0, borders - 1).astype(int).T
        mask[rows, columns] = True
    return Drawing(mask, frozenset(faults))


def count_windings(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int16 [H, W]: how often a polygon [N, 2] goes round the centre of a pixel; backwards is -1."""
    height, width = size
    ends = np.roll(points, -1, axis=0)
    tops = np.minimum(points[:, 1], ends[:, 1])
    bottoms = np.maximum(points[:, 1], ends[:, 1])
    # An edge meets the rows whose centres lie between its ends; of a corner one edge counts.
    first_rows = np.clip(np.ceil(tops - 0.5), 0, height).astype(int)
    last_rows = np.clip(np.ceil(bottoms - 0.5), 0, height).astype(int)
    counts = last_rows - first_rows
    edges = np.repeat(np.arange(len(points)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = first_rows[edges] + offsets
    start = points[edges]
    end = ends[edges]
    slopes = (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
    crossings = start[:, 0] + (rows + 0.5 - start[:, 1]) * slopes
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    steps = np.zeros((height, width + 1), np.int16)
    np.add.at(steps, (rows, columns), np.where(end[:, 1] > start[:, 1], 1, -1).astype(np.int16))
    return steps.cumsum(axis=1, dtype=np.int16)[:, :width]
