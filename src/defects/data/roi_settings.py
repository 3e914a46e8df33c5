"""data.roi: which part of the images is judged. Pixels outside it are neither learnt, scored nor counted."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, WithJsonSchema, field_validator, model_validator

from defects.settings import Section


def _check_part(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(
            "write parts of the image from 0 to 1: pixels across divided by its width, down by its height"
        )
    return value


# Of an image's width or height, from its upper left corner.
IN_PARTS = WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
Part = Annotated[float, AfterValidator(_check_part), IN_PARTS]
Point = tuple[Part, Part]  # x, y


class RoiSettings(Section):
    """The region of interest, in exactly one of these ways."""

    # An image file, not black where judged: the same for all images, of their size; relative to data.root.
    mask: Path | None = None
    folder: Path | None = None  # of such a file for each image, named like it; relative to data.root
    polygon: list[Point] | None = None
    rectangle: tuple[Part, Part, Part, Part] | None = None  # left, top, right, bottom
    # Of each image what Otsu's threshold separates from a background that is dark, or bright.
    foreground: Literal["on_dark", "on_bright"] | None = None

    @field_validator("polygon")
    @classmethod
    def _has_area(cls, polygon: list[Point] | None) -> list[Point] | None:
        if polygon is not None and (len(polygon) < 3 or not np.ptp(np.array(polygon), axis=0).all()):
            raise ValueError("the polygon encloses nothing: write three points or more, [[x, y], ...]")
        crossing = None if polygon is None else _find_crossing(np.array(polygon))
        if crossing is not None:
            raise ValueError(
                f"the polygon crosses itself behind points {crossing[0]} and {crossing[1]}: write the points "
                "in their order around the part"
            )
        return polygon

    @field_validator("rectangle")
    @classmethod
    def _in_order(cls, rectangle: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if rectangle is not None and not (rectangle[0] < rectangle[2] and rectangle[1] < rectangle[3]):
            raise ValueError("write left, top, right, bottom, left below right and top below bottom")
        return rectangle

    @model_validator(mode="after")
    def _one_way(self) -> "RoiSettings":
        chosen = [name for name, value in self if value is not None]
        if len(chosen) != 1:
            ways = ", ".join(type(self).model_fields)
            raise ValueError(f"data.roi: set exactly one of {ways}; set are {', '.join(chosen) or 'none'}")
        return self

    def locate_masks(self, root: Path) -> Path | None:
        """The file or folder that is named, below `root` unless it is absolute; None where none is."""
        source = self.mask or self.folder
        return None if source is None else root / source.expanduser()

    @property
    def is_fixed(self) -> bool:
        """Whether the region is the same for all images."""
        return self.foreground is None and self.folder is None

    @property
    def corners(self) -> np.ndarray | None:
        """float [N, 2], x and y in parts of the image, of a polygon or rectangle."""
        if self.rectangle is not None:
            left, top, right, bottom = self.rectangle
            return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        return None if self.polygon is None else np.array(self.polygon, float)


def _find_crossing(points: np.ndarray) -> tuple[int, int] | None:
    """Of a closed polygon [N, 2] the numbers, from 1, of the points where two edges begin that cross."""
    ends = np.roll(points, -1, axis=0)
    for first in range(len(points)):
        for second in range(first + 1, len(points)):
            edge = (points[first], ends[first])
            other = (points[second], ends[second])
            if _are_apart(*edge, *other) and _are_apart(*other, *edge):
                return first + 1, second + 1
    return None


def _are_apart(start: np.ndarray, end: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two points lie on different sides of the line through `start` and `end`, and none on it."""
    across, down = end - start
    one_side = across * (one[1] - start[1]) - down * (one[0] - start[0])
    other_side = across * (other[1] - start[1]) - down * (other[0] - start[0])
    return one_side * other_side < 0
