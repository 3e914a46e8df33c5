"""Reading images: the one OpenCV path that training, inference and prediction share."""

import io
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from defects.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


class Box(NamedTuple):
    """Part of a frame, in pixels of it."""

    top: int
    left: int
    height: int
    width: int


class ImageFacts(NamedTuple):
    """What prepare's inventory tells of one image file."""

    width: int  # pixels, as read: EXIF rotation applied
    height: int
    bits: int  # stored bits of each channel: 1, 8, 16, ...
    channels: str  # "grey", "RGB", "grey+alpha", "RGBA", "palette", "CMYK", ...
    largest: int  # largest stored value of the colour channels


# A broken file is reported by this program, in one line, with its name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
Image.MAX_IMAGE_PIXELS = None  # only headers are read with it; OpenCV has a limit of its own


def read_image(path: Path, size: tuple[int, int] | None = None, fit: str = "squash") -> np.ndarray:
    """RGB uint8 [H, W, 3]: EXIF rotation applied, alpha dropped, 16 bits scaled to 8, palettes resolved.

    With `size` = (height, width), brought into a frame of that size as data.fit says; a JPEG at least twice
    as large is decoded at a fraction of its size, which is several times faster. Raises UserError naming a
    file that is missing, empty, truncated or no image.
    """
    return read_framed(path, size, fit)[0]


def read_framed(
    path: Path, size: tuple[int, int] | None, fit: str = "squash"
) -> tuple[np.ndarray, tuple[int, int]]:
    """As read_image, and the (height, width) in pixels that the image had before it was framed."""
    content = read_content(path)
    stored = None if size is None else _jpeg_sides(content)
    reduction = 1 if stored is None else _reduction(stored, size, fit)
    if reduction == 1:
        image = decode(path, content, cv2.IMREAD_COLOR_RGB)
        shape = image.shape[:2]
        return image if size is None else into_frame(image, size, fit), shape
    image = cv2.cvtColor(decode(path, content, REDUCED[reduction]), cv2.COLOR_BGR2RGB)
    # The header's own sides: those of the reduced image are rounded, and its mask would lie a pixel beside.
    height, width = sorted(stored, reverse=image.shape[0] > image.shape[1])
    return _framed(image, size, content_box((height, width), size, fit)), (height, width)


def examine_image(path: Path, bits: int | None = None) -> ImageFacts:
    """Decode a file completely, once. Raises UserError saying what is wrong with it."""
    pixels = decode(path, read_content(path), cv2.IMREAD_UNCHANGED)
    height, width = pixels.shape[:2]
    channels = {2: "grey", 3: "RGB", 4: "RGBA"}[2 if pixels.ndim == 2 else pixels.shape[2]]
    return ImageFacts(width, height, 8 * pixels.itemsize, channels, int(pixels.max()))


def read_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run src/prepare.py again if files were moved") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def decode(path: Path, content: bytes, mode: int) -> np.ndarray:
    try:
        # imdecode, not imread: on Windows the latter cannot open names outside the code page.
        image = None if _is_broken(content) else cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            limit = f"OPENCV_IO_MAX_IMAGE_PIXELS={os.environ['OPENCV_IO_MAX_IMAGE_PIXELS']}"
            raise UserError(f"{path} claims to have more pixels than {limit}: cut it into tiles") from None
        image = None
    if image is None:
        raise UserError(f"{path} is empty, truncated or no image: replace or remove it")
    return image


def _jpeg_sides(content: bytes) -> tuple[int, int] | None:
    """The sides of a JPEG, which EXIF may swap; None for others: they are decoded whole, then subsampled."""
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as header:
            return header.size
    except (OSError, ValueError, SyntaxError):
        return None  # the decoder itself will say what is wrong


def _reduction(sides: tuple[int, int], size: tuple[int, int], fit: str) -> int:
    """The largest of 8, 4, 2 by which a JPEG can shrink and need not be enlarged after, or 1.

    In a letterbox the longer side decides: none becomes longer than that of the frame.
    """
    side = max(sides) if fit == "letterbox" else min(sides)
    return next((factor for factor in (8, 4, 2) if side // factor >= max(size)), 1)


def _is_broken(content: bytes) -> bool:
    """Empty, a JPEG without its end mark, or a PNG with a wrong checksum.

    OpenCV fills the missing rows of a JPEG whose tail is zeros (an interrupted download), and libpng
    complains about a PNG on stderr, past this program's one line.
    """
    if content.startswith(b"\x89PNG"):
        return not _is_whole_png(memoryview(content))
    return not content or (content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < 0)


def _is_whole_png(content: memoryview) -> bool:
    """Whether all chunks that an image is made of are there, up to the last, and as they were written."""
    start, kind = 8, b""
    while kind != b"IEND" and start < len(content):
        kind = bytes(content[start + 4 : start + 8])
        end = start + 12 + int.from_bytes(content[start : start + 4])
        checksum = int.from_bytes(content[end - 4 : end])
        if kind[:1].isupper() and zlib.crc32(content[start + 4 : end - 4]) != checksum:
            return False
        start = end
    return kind == b"IEND"


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring [H, W] or [H, W, C] to size = (height, width); area averaging down, bilinear up."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int], fit: str = "squash") -> np.ndarray:
    """bool [H, W] to size, as its image; a defect of one pixel survives shrinking (any coverage counts)."""
    return into_frame(mask.astype(np.float32), size, fit) > 0


def into_frame(image: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """[H, W] or [H, W, C] as a detector sees it: squashed to size = (height, width), or letterboxed.

    The latter is scaled by one factor, centred, and reflected into the rest of the frame, again and again
    where that is larger than the image: a black border would betray what has which shape.
    """
    return _framed(image, size, content_box(image.shape[:2], size, fit))


def content_box(shape: tuple[int, int], size: tuple[int, int], fit: str) -> Box:
    """Where an image of `shape` lies in the frame of `size`, both (height, width) in pixels."""
    if fit == "squash":
        return Box(0, 0, *size)
    factor = min(size[0] / shape[0], size[1] / shape[1])
    height, width = (max(1, round(factor * side)) for side in shape)
    return Box((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def _framed(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    image = resize(image, (box.height, box.width))
    bottom, right = size[0] - box.top - box.height, size[1] - box.left - box.width
    if not (bottom or right):  # the smaller border is at the top and at the left
        return image
    return cv2.copyMakeBorder(image, box.top, bottom, box.left, right, cv2.BORDER_REFLECT_101)
