"""Images as an exported model takes them: from files, and from arrays of a program that has them in memory.

Neither torch nor pandas is imported.
"""

import os
import stat
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from defects.data.images import covered, read_image, read_image_and_shape, resize
from defects.data.roi import enlarge_inside, find_foreground, is_enlarged, scale_inside
from defects.deploy.model import Meta
from defects.deploy.stores import StoredImage, is_url
from defects.messages import UserError


class Frame(NamedTuple):
    """An image as the model sees it, uint8 [h, w, 3], and the (height, width) it had.

    `inside`: bool [h, w], what of it is judged; None where all of it is.
    """

    image: np.ndarray
    shape: tuple[int, int]
    inside: np.ndarray | None = None


def read_frame(path: Path | StoredImage, meta: Meta, mask: np.ndarray | None = None) -> Frame:
    """Of a file, with the `mask` bool [H, W] of its region of interest if the model needs one.

    Raises UserError for what is no image, damaged, or a pipe or device: reading that might never end;
    StoreError where a StoredImage lies in a store that is lost.
    """
    with suppress(OSError):  # reading it says what is wrong
        if not is_url(str(path)) and _is_special(str(path)):
            raise UserError(f"{path} is no plain file: name an image")
    image, shape = read_image_and_shape(path, meta.image_size, meta.bits, is_strict=True)
    inside = _find_inside(image, shape, meta, mask, str(path))
    if _has_border_to_hide(shape, meta):
        image = enlarge_inside(read_image(path, bits=meta.bits), inside)
    return Frame(image, shape, inside)


def _is_special(path: str) -> bool:
    mode = os.stat(path).st_mode  # noqa: PTH116 (text and Path alike)
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def make_frame(array: Any, meta: Meta, mask: np.ndarray | None = None, name: str = "the image") -> Frame:
    """Of an image in memory: uint8 [H, W] grey or [H, W, 3] RGB; uint16 for a model of 16-bit images.

    Raises UserError, with `name`, for any other array.
    """
    check_array(array, meta, name)
    shape = array.shape[:2]
    image = np.ascontiguousarray(array)
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / (2**meta.bits - 1)).reshape(image.shape)
    colours = _to_colours(resize(image, meta.image_size))
    inside = _find_inside(colours, shape, meta, mask, name)
    if _has_border_to_hide(shape, meta):
        colours = _to_colours(enlarge_inside(image, inside))
    return Frame(colours, shape, inside)


def _to_colours(image: np.ndarray) -> np.ndarray:
    is_grey = image.ndim == 2 or image.shape[2] == 1
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if is_grey else image


def _has_border_to_hide(shape: tuple[int, int], meta: Meta) -> bool:
    return meta.roi is not None and meta.roi.is_fixed and is_enlarged(shape, meta.image_size)


def check_array(array: Any, meta: Meta, name: str) -> None:
    """Raises UserError for what is no image of a kind that the model takes."""
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} is of type {type(array).__name__}: give a NumPy array, np.asarray(image)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise UserError(
            f"{name} has the shape {array.shape}: give [height, width], or [height, width, 3] in the order "
            "RGB, without alpha"
        )
    if not array.size:
        raise UserError(f"{name} is empty, of shape {array.shape}: give an image with pixels")
    if array.dtype == np.uint16 and meta.bits is not None:
        return
    if array.dtype != np.uint8:
        advice = "scale it as the training images were, and round to uint8"
        if np.issubdtype(array.dtype, np.floating):
            advice = "give uint8; of values from 0 to 1, np.rint(255 * image).astype(np.uint8)"
        elif array.dtype == np.bool_:
            advice = "give grey levels or colours"
        raise UserError(f"{name} holds {array.dtype} values, the model takes uint8 from 0 to 255: {advice}")


def hide_outside(image: np.ndarray, meta: Meta) -> np.ndarray:
    """uint8 [H, W, 3] with the mean colour of what the model judges elsewhere; itself where all is judged."""
    if meta.roi is None or meta.needs_masks:
        return image
    try:
        inside = scale_inside(make_frame(image, meta).inside, image.shape[:2])
    except UserError:  # nothing stands out of the background
        return image
    return covered(image, ~inside) if inside.any() else image


def stack_frames(frames: Sequence[Frame], meta: Meta) -> np.ndarray:
    """The model's input, uint8 [B, h, w, C]."""
    images = np.stack([frame.image for frame in frames])
    if meta.channels == 3:
        return images
    inside = np.stack([frame.inside for frame in frames])
    return np.concatenate([images, 255 * inside[..., None].astype(np.uint8)], axis=3)


def _find_inside(
    image: np.ndarray, shape: tuple[int, int], meta: Meta, mask: np.ndarray | None, name: str
) -> np.ndarray | None:
    """bool [h, w] of an image that had `shape`. Raises UserError where nothing is left, and for masks."""
    roi = meta.roi
    if roi is None or roi.is_fixed or roi.foreground is not None:
        if mask is not None:
            raise UserError(f"{name} comes with a mask, and the model needs none: leave it out")
        if roi is None:
            return None
        inside = decode_inside(roi.inside_png) if roi.is_fixed else find_foreground(image, roi.foreground)
    else:
        if mask is None:
            raise UserError(f"{name} comes without a mask of its region of interest, which the model needs")
        _check_mask(mask, shape, name)
        inside = scale_inside(mask > 0, meta.image_size)
    if not inside.any():
        raise UserError(f"the region of interest leaves nothing of {name}")
    return inside


def _check_mask(mask: Any, shape: tuple[int, int], name: str) -> None:
    """Raises UserError for what is no region of interest of an image of `shape`."""
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "bui":
        kind = f"holds {mask.dtype} values" if isinstance(mask, np.ndarray) else f"is a {type(mask).__name__}"
        raise UserError(f"the region of interest of {name} {kind}: give a NumPy array of bool, mask > 0")
    if mask.ndim != 2:
        raise UserError(f"the region of interest of {name} has the shape {mask.shape}: give [height, width]")
    if mask.shape != tuple(shape):
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, the image {shape[1]}x{shape[0]}"
        raise UserError(f"the region of interest of {name} is {sizes}: make them of one size")


@lru_cache(maxsize=8)
def decode_inside(inside_png: str) -> np.ndarray:
    """bool [h, w] of RoiMeta.inside_png. Raises UserError if it is no picture."""
    try:
        content = np.frombuffer(b64decode(inside_png, validate=True), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    except (ValueError, cv2.error):
        pixels = None
    if pixels is None:
        raise UserError("model.json holds a broken region of interest (roi.inside_png): export again")
    return pixels > 0
