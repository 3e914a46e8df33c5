"""data.roi: which part of the images is judged. Pixels outside it are neither learnt, scored nor counted."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from defects.settings import Section

Part = Annotated[float, Field(ge=0, le=1)]  # of an image's width or height, from its upper left corner
Point = tuple[Part, Part]  # x, y


class RoiSettings(Section):
    """The region of interest, in exactly one of these ways."""

    mask: Path | None = None  # an image file, not black where judged: the same for all images, of their size
    folder: Path | None = None  # such a file for each image, named like it
    polygon: list[Point] | None = None
    rectangle: tuple[Part, Part, Part, Part] | None = None  # left, top, right, bottom
    # Of each image what Otsu's threshold separates from a background that is dark, or bright.
    foreground: Literal["on_dark", "on_bright"] | None = None

    @field_validator("polygon")
    @classmethod
    def _has_area(cls, polygon: list[Point] | None) -> list[Point] | None:
        if polygon is not None and (len(polygon) < 3 or not np.ptp(np.array(polygon), axis=0).all()):
            raise ValueError("the polygon encloses nothing: write three points or more, [[x, y], ...]")
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
