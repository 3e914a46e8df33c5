"""Reading images: the one OpenCV path that training, inference and prediction share."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from defects.data.decoding import check_content, decode_colours, read_content, to_eight_bits
from defects.data.headers import EIGHT_BITS
from defects.data.mask_files import read_mask as read_mask  # images and masks from one place
from defects.data.mask_pixels import are_pixels_of_mask
from defects.messages import shorten_names

# What OpenCV decodes without a switch to pictures of 8 or 16 bits; .hdr and .pfm hold 32-bit float.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"),
    *(".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpx"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pxm", ".pam", ".ras", ".sr"),
}
CAMERA_BITS = (10, 12, 14, 16)  # depths of sensors
DARK = 2**12 - 1  # of 16 bits: 16 of 255


class ImageFacts(NamedTuple):
    """What prepare's inventory tells of one image file."""

    width: int  # pixels, as read: EXIF rotation applied
    height: int
    bits: int  # stored bits of each channel: 1, 8, 16, ...
    channels: str  # "grey", "RGB", "grey+alpha", "RGBA", "palette", "CMYK", ...
    largest: int  # largest stored value of the colour channels
    looks_like_mask: bool = False  # few levels, or one level alone


def read_image(
    path: Path,
    size: tuple[int, int] | None = None,
    bits: int | None = None,
    is_strict: bool = False,
) -> np.ndarray:
    """RGB uint8 [H, W, 3]: EXIF rotation applied, alpha dropped, palettes resolved, 16 bits scaled to 8.

    `bits` is data.bits, the depth of the camera behind 16-bit files. With `size` = (height, width), resized
    to it; a JPEG at least twice as large is decoded at a fraction of its size, which is several times faster.
    Raises UserError naming a file that is missing, empty, truncated or no image, and saying what else rules
    it out; with `is_strict` also for damage within the data.
    """
    return read_image_and_shape(path, size, bits, is_strict)[0]


def read_image_and_shape(
    path: Path,
    size: tuple[int, int] | None,
    bits: int | None = None,
    is_strict: bool = False,
) -> tuple[np.ndarray, tuple[int, int]]:
    """As read_image, and the (height, width) in pixels that the image had before it was resized."""
    content = read_content(path)
    header = check_content(path, content, is_strict)
    reduction = 1
    if size is not None and header.format == "JPEG" and header.height:
        reduction = _reduction((header.height, header.width), size)
    pixels = decode_colours(path, content, header, reduction)
    image = to_eight_bits(pixels, header, bits)
    shape = image.shape[:2]
    if size is None:
        return image, shape
    if reduction > 1:
        # The header's own sides: those of the reduced image are rounded.
        shape = tuple(sorted((header.height, header.width), reverse=shape[0] > shape[1]))
    return resize(image, size), shape


def examine_image(path: Path) -> ImageFacts:
    """What prepare's inventory tells of a file, decoded completely and checked for damage.

    Raises UserError saying what is wrong with it.
    """
    content = read_content(path)
    header = check_content(path, content, is_strict=True)
    pixels = decode_colours(path, content, header)
    height, width = pixels.shape[:2]
    is_grey = not header.channels and np.array_equal(pixels[..., 0], pixels[..., 2])
    channels = header.channels or ("grey" if is_grey else "RGB")
    largest = int(pixels.max())
    if header.bits < 8 and header.is_spread:
        largest = round(largest * header.white / EIGHT_BITS)  # spread over 0 to 255 by the decoder
    looks_like_mask = are_pixels_of_mask(pixels[..., :1] if channels == "grey" else pixels)
    return ImageFacts(width, height, header.bits, channels, largest, looks_like_mask)


def notes_on_depth(facts: Mapping[str, ImageFacts], bits: int | None) -> list[str]:
    """For the inventory: sentences if 16-bit images do not fit `bits`, data.bits, or use few of their bits.

    `facts` by path.
    """
    largest = {path: image.largest for path, image in facts.items() if image.bits == 16}
    if not largest:
        return []
    if bits is not None:
        return _note_above_white(largest, bits)
    needed = max(largest.values()).bit_length()
    camera = next(depth for depth in CAMERA_BITS if depth >= needed)
    if camera == 16:
        return _note_dark(largest)
    count = f"{len(largest)} images" if len(largest) > 1 else "1 image"
    return [
        f"{count} of 16 bits never exceed {2**camera - 1:,} of 65,535 and are read as nearly black: "
        f"if they are {camera}-bit frames, set data.bits={camera}"
    ]


def _note_above_white(largest: dict[str, int], bits: int) -> list[str]:
    white = 2**bits - 1
    above = [path for path, value in largest.items() if value > white]
    if not above:
        return []
    return [
        f"{len(above)} of {len(largest)} images of 16 bits exceed {white:,}, the white level of "
        f"data.bits={bits}, and are white there (up to {max(largest.values()):,}): {shorten_names(above)}"
    ]


def _note_dark(largest: dict[str, int]) -> list[str]:
    dark = [path for path, value in largest.items() if value <= DARK]
    if not dark:
        return []
    return [
        f"{len(dark)} of {len(largest)} images of 16 bits never exceed {DARK:,} and are read as nearly "
        f"black, the others are not: if their cameras differ, convert all to one depth: {shorten_names(dark)}"
    ]


def _reduction(sides: tuple[int, int], size: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 by which a JPEG can shrink and need not be enlarged after, or 1."""
    return next((factor for factor in (8, 4, 2) if min(sides) // factor >= max(size)), 1)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring [H, W] or [H, W, C] to size = (height, width); area averaging down, bilinear up."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] to size; a defect of one pixel survives shrinking (any coverage counts)."""
    return resize(mask.astype(np.float32), size) > 0
