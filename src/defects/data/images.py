"""Reading images: the one way in which training, inference and prediction decode and resize image files.

Neither torch nor pandas is imported.
"""

import math
import os
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from defects.data.damage import find_damage, is_truncated, without_padding
from defects.data.headers import EIGHT_BITS, Header, is_rotated_webp, read_header
from defects.messages import UserError, shorten_names
from defects.versions import parse_release

OPENCV_RELEASE = parse_release(cv2.__version__)

# What OpenCV decodes without a switch to pictures of 8 or 16 bits; .hdr and .pfm hold 32-bit float.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"),
    *(".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpx"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pxm", ".pam", ".ras", ".sr"),
}
REDUCED_MODES = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
PIXEL_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # the environment variable of OpenCV
CAMERA_BITS = (10, 12, 14, 16)  # depths of sensors
DARK_LEVEL = 2**12 - 1  # of 16 bits: 16 of 255

MAIN_SHARE = 0.3  # of the pixels of a mask, at least, have one level: photographs are noisy
MASK_LEVELS = 32  # grey levels of a mask that was not compressed with loss, at most
NEAR_LEVELS = 12  # of 255: lossy files and soft edges spread a level by so much
NEAR_SHARE = 0.95  # of the pixels of a lossy mask lie near its two most frequent levels

Window = tuple[slice, slice]  # rows, columns


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
    Raises UserError for a file that is missing, empty, truncated, no image or of an unsupported kind; with
    `is_strict` also for damage within the data.
    """
    return read_image_and_shape(path, size, bits, is_strict)[0]


def read_image_and_shape(
    path: Path,
    size: tuple[int, int] | None,
    bits: int | None = None,
    is_strict: bool = False,
) -> tuple[np.ndarray, tuple[int, int]]:
    """As read_image, and the (height, width) in pixels that the image had before it was resized."""
    content, header = read_content(path, is_strict)
    reduction = 1
    if size is not None and header.format == "JPEG" and header.height:
        # The most by which a JPEG can shrink and need not be enlarged after.
        shorter_side = min(header.height, header.width)
        factors = (factor for factor in (8, 4, 2) if shorter_side // factor >= max(size))
        reduction = next(factors, 1)
    pixels = decode_colours(path, content, header, reduction)
    image = _to_eight_bits(pixels, header, bits)
    shape = image.shape[:2]
    if size is None:
        return image, shape
    if reduction > 1:
        # From the header: height and width of the reduced image are rounded.
        shape = tuple(sorted((header.height, header.width), reverse=shape[0] > shape[1]))
    return resize(image, size), shape


def examine_image(path: Path) -> ImageFacts:
    """Decode a file completely and check it for damage, for prepare's inventory. Raises UserError."""
    content, header = read_content(path, is_strict=True)
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
    largest_values = {path: image.largest for path, image in facts.items() if image.bits == 16}
    if not largest_values:
        return []
    count = len(largest_values)
    maximum = max(largest_values.values())
    if bits is not None:
        white = 2**bits - 1
        paths_above = [path for path, value in largest_values.items() if value > white]
        if not paths_above:
            return []
        return [
            f"{len(paths_above)} of {count} images of 16 bits exceed {white:,}, the white level of "
            f"data.bits={bits}, and are white there (up to {maximum:,}): {shorten_names(paths_above)}"
        ]
    camera_bits = next(depth for depth in CAMERA_BITS if depth >= maximum.bit_length())
    if camera_bits < 16:
        images = f"{count} images" if count > 1 else "1 image"
        return [
            f"{images} of 16 bits never exceed {2**camera_bits - 1:,} of 65,535 and are read as nearly "
            f"black: if they are {camera_bits}-bit frames, set data.bits={camera_bits}"
        ]
    dark_paths = [path for path, value in largest_values.items() if value <= DARK_LEVEL]
    if not dark_paths:
        return []
    return [
        f"{len(dark_paths)} of {count} images of 16 bits never exceed {DARK_LEVEL:,} and are read as nearly "
        f"black, the others are not: if their cameras differ, convert all to one depth: "
        f"{shorten_names(dark_paths)}"
    ]


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring [H, W] or [H, W, C] to size = (height, width); area averaging down, bilinear up."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    is_shrinking = image.shape[0] >= height and image.shape[1] >= width
    interpolation = cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] to size; a defect of one pixel survives shrinking (any coverage counts)."""
    return resize(mask.astype(np.float32), size) > 0


def covered(image: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with the mean colour of the visible pixels where `cover` is True.

    The mean of the image would still hold some of the defect below the cover, and black would be no colour of
    most surfaces.
    """
    visible = image[~cover]
    filled = image.copy()
    filled[cover] = np.rint(visible.mean(axis=0)) if len(visible) else 0
    return filled


def windows(size: tuple[int, int], window: tuple[int, int] | None) -> list[Window]:
    """Windows of (height, width) that cover an image of `size`, in pixels, so that a detector sees small
    defects at full size; one window of the whole image where it is no larger.
    """
    rows, columns = (_spread_slices(*lengths) for lengths in zip(size, window or size, strict=True))
    return list(product(rows, columns))


def _spread_slices(length: int, window: int) -> list[slice]:
    """Evenly spread windows that cover `length` pixels and overlap by a quarter or more."""
    if length <= window:
        return [slice(0, length)]
    count = 1 + math.ceil((length - window) / (0.75 * window))
    starts = [round(index * (length - window) / (count - 1)) for index in range(count)]
    return [slice(start, start + window) for start in starts]


def are_pixels_of_mask(pixels: np.ndarray) -> bool:
    """Whether [H, W, C], uint8 or uint16, has the few levels of a mask; a blank picture has them too."""
    return all(_is_mask_plane(np.ascontiguousarray(plane)) for plane in cv2.split(pixels))


def _is_mask_plane(plane: np.ndarray) -> bool:
    """Whether much of a plane [H, W] has one level exactly, and the others few levels, or nearly one."""
    if plane.dtype != np.uint8:
        _, counts = np.unique(plane, return_counts=True)
        return len(counts) <= MASK_LEVELS and counts.max() >= MAIN_SHARE * plane.size
    counts = np.bincount(plane.ravel(), minlength=256)
    if counts.max() < MAIN_SHARE * plane.size:
        return False
    if np.count_nonzero(counts) <= MASK_LEVELS:
        return True
    near = 0
    for _ in range(2):
        level = int(counts.argmax())
        start = max(0, level - NEAR_LEVELS)
        near += counts[start : level + NEAR_LEVELS + 1].sum()
        counts[start : level + NEAR_LEVELS + 1] = 0
    return near >= NEAR_SHARE * plane.size


def read_content(path: Path, is_strict: bool = False) -> tuple[bytes, Header]:
    """Content and header of an image file. Raises UserError for a file that cannot be used: several pictures,
    float values, damage.

    `is_strict`: also for damage that decoders take, which costs up to as much time as decoding.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run src/prepare.py again if files were moved") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    header = read_header(content)
    if header.refusal:
        raise UserError(f"{path} holds {header.refusal}")
    if header.height * header.width > int(os.environ[PIXEL_LIMIT]):
        raise _too_large(path)
    if is_truncated(content, header):
        raise _unreadable(path)
    damage = find_damage(content, header) if is_strict else ""
    if damage:
        raise UserError(f"{path} is damaged ({damage}): replace or remove it")
    return content, header


def decode_colours(path: Path, content: bytes, header: Header, reduction: int = 1) -> np.ndarray:
    """RGB [H, W, 3], uint8 or uint16 with the stored values: EXIF rotation applied, palettes resolved.

    Alpha is dropped. Values of fewer than 8 bits are spread over 0 to 255. `reduction` is for JPEGs: 1, 2, 4
    or 8.
    """
    if reduction > 1:
        return cv2.cvtColor(_decode(path, content, header, REDUCED_MODES[reduction]), cv2.COLOR_BGR2RGB)
    if header.bits <= 8:
        return _decode(path, content, header, cv2.IMREAD_COLOR_RGB)
    # OpenCV 5.0 exchanges red and blue of a TIFF with IMREAD_COLOR_RGB here, and those of a PAM without.
    if header.format != "TIFF":
        return _decode(path, content, header, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    pixels = _decode(path, content, header, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) >> (16 - header.bits)  # packed values come shifted up
    return header.white - pixels if header.is_inverted else pixels


def _to_eight_bits(pixels: np.ndarray, header: Header, bits: int | None) -> np.ndarray:
    """uint8 of what decode_colours gives: black to white level becomes 0 to 255, what lies above is white.

    The white level of more than 8 bits is 2**bits - 1 (data.bits), or without `bits` the largest value that
    the file's header allows. It never depends on the pixels.
    """
    if pixels.dtype == np.uint16:
        white = header.white if bits is None else 2**bits - 1
    else:
        white = EIGHT_BITS if header.is_spread else header.white
    return pixels if white == EIGHT_BITS else cv2.convertScaleAbs(pixels, alpha=EIGHT_BITS / white)


def _decode(path: Path, content: bytes, header: Header, mode: int) -> np.ndarray:
    """cv2.imdecode. Raises UserError if it gives nothing, or neither uint8 nor uint16."""
    if header.format == "WebP" and OPENCV_RELEASE < (4, 13) and is_rotated_webp(content):
        raise UserError(
            f"{path} is a WebP with a mark to turn or mirror it, which OpenCV {cv2.__version__} ignores: "
            "convert it to PNG, or install opencv-python-headless 4.13 or newer"
        )
    try:
        # imdecode, not imread: on Windows the latter cannot open names outside the code page.
        pixels = cv2.imdecode(np.frombuffer(_adapt_to_opencv(content, header), np.uint8), mode)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise _too_large(path) from None
        pixels = None
    if pixels is None and header.is_tiled:
        raise UserError(f"{path} is damaged, or has small tiles, which OpenCV cannot read: save it in strips")
    if pixels is None and header.format and re.search(f"{header.format}: +NO", cv2.getBuildInformation()):
        raise UserError(
            f"{path}: OpenCV {cv2.__version__} reads no {header.format} files: convert it to PNG, or install "
            "opencv-python-headless 4.12 or newer"
        )
    if pixels is None:
        raise _unreadable(path)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} holds {pixels.dtype} values: convert to 8 or 16 bits")
    return pixels


def _adapt_to_opencv(content: bytes, header: Header) -> bytes:
    """The content, changed where OpenCV would misread it."""
    if header.format == "JPEG":
        return without_padding(content)
    if content[:2] in (b"P1", b"P2", b"P3"):
        return content + b"\n"  # the last number may lack it
    if header.straight_alpha:
        # libtiff multiplies colours by alpha unless a tag says that they already are.
        position = header.straight_alpha
        return content[:position] + b"\1" + content[position + 1 :]
    return content


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path} claims to have more pixels than {PIXEL_LIMIT}={os.environ[PIXEL_LIMIT]}: split it into tiles"
    )


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is empty, truncated or no image: replace or remove it")
