"""Windows: parts of one size that cover an image, so that a detector sees small defects at full size."""

import math
from itertools import product

Window = tuple[slice, slice]  # rows, columns


def windows(size: tuple[int, int], window: tuple[int, int] | None) -> list[Window]:
    """Windows of (height, width) over images of `size`, in pixels; one of all of it where none is smaller."""
    return list(product(*(_places(*sides) for sides in zip(size, window or size, strict=True))))


def _places(side: int, window: int) -> list[slice]:
    """Evenly spread windows that cover `side` pixels and overlap by a quarter or more."""
    if side <= window:
        return [slice(0, side)]
    count = 1 + math.ceil((side - window) / (0.75 * window))
    starts = [round(index * (side - window) / (count - 1)) for index in range(count)]
    return [slice(start, start + window) for start in starts]
