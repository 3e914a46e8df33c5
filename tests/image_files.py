"""Image files of many kinds, as bytes, made with Pillow, OpenCV and NumPy."""

import io
import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 24, 40
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = RGB[..., 1]
DEEP = RANDOM.integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
DEEP_RGB = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), np.uint16)
# Suffixes of what this OpenCV does not read: 4.11 has neither.
UNREAD = [
    f".{name.lower()}"
    for name in ("AVIF", "GIF")
    if f"{name}: NO" in re.sub(" +", " ", cv2.getBuildInformation())
]


def readable(name: str):
    """A file name as a parameter of a test that reads the file, skipped where OpenCV does not."""
    is_unread = any(name.endswith(suffix) for suffix in UNREAD)
    return pytest.param(name, marks=pytest.mark.skipif(is_unread, reason="not read by this OpenCV"))


def encoded(image: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    """By Pillow."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def encoded_frames(format: str, count: int = 3) -> bytes:
    """`count` different pictures in one file."""
    frames = [Image.fromarray(np.roll(RGB, number, axis=0)) for number in range(count)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def encoded_by_opencv(image: np.ndarray, suffix: str, *options: int) -> bytes:
    """`image` is grey, RGB or RGBA."""
    order = {2: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.ndim if image.ndim == 2 else image.shape[2]]
    stored = image if image.ndim == 2 else np.ascontiguousarray(image[..., order])
    return cv2.imencode(suffix, stored, options)[1].tobytes()


def tiff(
    pixels: np.ndarray | bytes, subfiles: tuple[int, ...] = (0,), order: str = "<", **tags: object
) -> bytes:
    """An uncompressed TIFF of [H, W] or [H, W, C]; `tags` (t258=8) go over what describes the pixels.

    Bytes are taken as they are, of HEIGHT x WIDTH pixels. `subfiles`: a page of the same pixels for each, of
    which 1 marks a smaller copy.
    """
    described: dict[int, object] = {}
    if isinstance(pixels, np.ndarray):
        samples = pixels.shape[2] if pixels.ndim == 3 else 1
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        described = {258: samples * (8 * pixels.itemsize,), 339: samples * (kind,), 277: samples}
        described |= {256: pixels.shape[1], 257: pixels.shape[0], 262: 2 if samples >= 3 else 1}
        pixels = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    described = {256: WIDTH, 257: HEIGHT, 259: 1, 262: 1, 284: 1} | described
    described |= {int(name[1:]): value for name, value in tags.items()}
    described |= {273: 8, 278: described[257], 279: len(pixels)}
    start = 8 + len(pixels) + len(pixels) % 2
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    content += pixels + b"\0" * (len(pixels) % 2)
    for page, subfile in enumerate(subfiles, 1):
        content += _directory(described | {254: subfile}, len(content), order, page == len(subfiles))
    return content


def _directory(tags: dict[int, object], start: int, order: str, is_last: bool) -> bytes:
    entries = b""
    behind = b""
    end = start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind = 4 if max(values) > 65535 or tag in (273, 279) else 3
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            behind, packed = behind + packed, struct.pack(order + "I", end + len(behind))
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    following = 0 if is_last else end + len(behind)
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + behind


def pnm(kind: int, pixels: np.ndarray, white: int) -> bytes:
    """P2, P5 and so on of [H, W] or [H, W, 3]."""
    head = f"P{kind}\n# a comment\n{pixels.shape[1]} {pixels.shape[0]}\n{white}\n".encode()
    if kind in (2, 3):
        return head + " ".join(map(str, pixels.ravel())).encode()
    return head + pixels.astype(">u2" if white > 255 else "u1").tobytes()


def with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    """A JPEG with a small one in its EXIF header, as cameras write them."""
    segment = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + jpeg[2:]
