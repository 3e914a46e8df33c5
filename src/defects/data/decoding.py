"""From the content of one image file to its pixels: the one way in which images and masks are decoded."""

import os
from pathlib import Path

import cv2
import numpy as np

from defects.data.damage import find_damage, is_truncated, without_padding
from defects.data.headers import EIGHT_BITS, Header, read_header
from defects.messages import UserError

REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"


def read_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run src/prepare.py again if files were moved") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def check_content(path: Path, content: bytes, is_strict: bool = False) -> Header:
    """The file's header. Raises UserError for what cannot be used: several pictures, float values, damage.

    `is_strict`: also for damage that decoders take, which costs up to as much time as decoding.
    """
    header = read_header(content)
    if header.refusal:
        raise UserError(f"{path} holds {header.refusal}")
    if header.height * header.width > int(os.environ[LIMIT]):
        raise _too_large(path)
    if is_truncated(content, header):
        raise _unreadable(path)
    damage = find_damage(content, header) if is_strict else ""
    if damage:
        raise UserError(f"{path} is damaged ({damage}): replace or remove it")
    return header


def decode_colours(path: Path, content: bytes, header: Header, reduction: int = 1) -> np.ndarray:
    """RGB [H, W, 3], uint8 or uint16 with the stored values: EXIF rotation applied, palettes resolved.

    Alpha is dropped. Values of fewer than 8 bits are spread over 0 to 255. `reduction` is for JPEGs: 1, 2, 4
    or 8.
    """
    if reduction > 1:
        return cv2.cvtColor(_decode(path, content, header, REDUCED[reduction]), cv2.COLOR_BGR2RGB)
    if header.bits <= 8:
        return _decode(path, content, header, cv2.IMREAD_COLOR_RGB)
    # OpenCV 5.0 exchanges red and blue of a TIFF with IMREAD_COLOR_RGB here, and those of a PAM without.
    if header.format != "TIFF":
        return _decode(path, content, header, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    pixels = _decode(path, content, header, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) >> (16 - header.bits)  # packed values come shifted up
    return header.white - pixels if header.is_inverted else pixels


def to_eight_bits(pixels: np.ndarray, header: Header, bits: int | None) -> np.ndarray:
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
    try:
        # imdecode, not imread: on Windows the latter cannot open names outside the code page.
        pixels = cv2.imdecode(np.frombuffer(_adapted(content, header), np.uint8), mode)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise _too_large(path) from None
        pixels = None
    if pixels is None and header.is_tiled:
        raise UserError(f"{path} is damaged, or has small tiles, which OpenCV cannot read: save it in strips")
    if pixels is None:
        raise _unreadable(path)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} holds {pixels.dtype} values: convert to 8 or 16 bits")
    return pixels


def _adapted(content: bytes, header: Header) -> bytes:
    """The content as OpenCV reads it rightly."""
    if header.format == "JPEG":
        return without_padding(content)
    if content[:2] in (b"P1", b"P2", b"P3"):
        return content + b"\n"  # the last number may lack it
    if header.straight_alpha:
        # Told that the colours are already multiplied by alpha, libtiff leaves them as they are.
        place = header.straight_alpha
        return content[:place] + b"\1" + content[place + 1 :]
    return content


def _too_large(path: Path) -> UserError:
    return UserError(f"{path} claims to have more pixels than {LIMIT}={os.environ[LIMIT]}: cut it into tiles")


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is empty, truncated or no image: replace or remove it")
