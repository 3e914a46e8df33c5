"""Mask files: which pixels of an image they mark."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import decode, read_content


class MaskFacts(NamedTuple):
    """What prepare's inventory tells of one mask file."""

    width: int  # pixels
    height: int
    share: float  # of the image that is marked
    kind: str  # "two levels", "labels", "many levels", "alpha", "palette", "jpeg"
    doubt: str  # "", or why it may not be meant so: "marks nearly everything"


def read_mask(path: Path, inverted: bool = False) -> np.ndarray:
    """bool [H, W]: True where a defect is marked; `inverted`: where nothing is, as `are_inverted` decides.

    Raises UserError naming a file that cannot be read.
    """
    return examine_mask(path, inverted)[0]


def examine_mask(path: Path, inverted: bool = False) -> tuple[np.ndarray, MaskFacts]:
    """As read_mask, and what the inventory tells of the file."""
    pixels = decode(path, read_content(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    mask = cv2.inRange(pixels, (0, 0, 0), (0, 0, 0)) == 0
    mask = mask ^ inverted
    height, width = mask.shape
    return mask, MaskFacts(width, height, float(mask.mean()), "two levels", "")


def are_inverted(facts: Sequence[MaskFacts]) -> bool:
    """Whether the masks of a data set mark, beyond doubt, what is no defect."""
    return False
