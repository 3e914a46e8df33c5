"""Damage in image files that decoders take silently, or with a warning on the console."""

import io
import re
import zlib

from PIL import Image

from defects.data.headers import Header
from defects.data.jpeg_frame import read_jpeg_frame

try:
    import simplejpeg
except ImportError:  # prediction does without it: then less damage within JPEG data is noticed
    simplejpeg = None

END_OF_IMAGE = b"\xff\xd9"
# Intact JPEGs hold no more than four in a row (5,363 photographs); four bytes are ten coefficients of -1.
ZEROS = bytes(16)
# Of constant to noisy pictures in JPEG 2000, and in TIFFs WITHOUT_CHECKSUM, 10 in a row are the most.
LONG_ZEROS = bytes(512)
CODESTREAM = b"\xff\x4f\xff\x51"  # start of the data of a JPEG 2000
# Tags of a TIFF.
COMPRESSION = 259
STRIP_OFFSETS = 273
STRIP_SIZES = 279
TILE_OFFSETS = 324
TILE_SIZES = 325
WITHOUT_CHECKSUM = (5, 7, 32773)  # values of COMPRESSION: LZW, JPEG, PackBits
SEQUENTIAL = (0xC0, 0xC1)
FIRST_AC_TABLE = 0x10
# What libjpeg says of intact pixels: odd headers, and colours that it cannot turn into grey.
HARMLESS = re.compile("ICC|JFIF|Adobe|SOS parameters|progression|color conversion|colorspace|subsampling")


def is_truncated(content: bytes, header: Header) -> bool:
    """Empty, a JPEG without its end mark, or a PNG with a wrong checksum: cheap, for every reading.

    OpenCV fills the missing rows of a JPEG whose tail is zeros (an interrupted download), and libpng
    complains about a PNG on stderr, past this program's one line.
    """
    if header.format == "PNG":
        return not _is_whole_png(memoryview(content))
    if header.format == "JPEG":
        try:
            start = read_jpeg_frame(content).data  # a thumbnail before it has an end mark of its own
        except ValueError:
            start = 0
        return content.rfind(END_OF_IMAGE) < start
    return not content


def find_damage(content: bytes, header: Header) -> str:
    """What is wrong within data that decoders take, or "": costs up to as much as decoding does.

    For JPEG libjpeg's own warnings, which OpenCV prints without a file name before it fills in grey. Values
    changed in uncompressed files and in WebP, which has no checksum, cannot be distinguished from others.
    """
    if header.format == "JPEG":
        return _find_jpeg_damage(without_padding(content))
    if header.format == "JPEG 2000" or (header.format == "TIFF" and header.is_compressed):
        return _find_damage_with_pillow(content)
    return ""


def without_padding(content: bytes, components: int = 3) -> bytes:
    """A JPEG without the zeros that some cameras put before its end mark: libjpeg warns of them."""
    end = content.rfind(END_OF_IMAGE)
    if content[end - 2 : end] != b"\0\0" or not _jpeg_warning(content, components):
        return content
    data = content[:end].rstrip(b"\0")
    if data.endswith(b"\xff"):
        data += b"\0"  # which belongs to it
    trimmed = data + content[end:]
    return content if _jpeg_warning(trimmed, components) else trimmed


def _find_jpeg_damage(content: bytes) -> str:
    try:
        frame = read_jpeg_frame(content)
    except ValueError:
        return _jpeg_warning(content)
    # With such symbols zeros mean coefficients of -1, in other tables perhaps the blocks of a flat image.
    are_zeros_unlikely = frame.marker in SEQUENTIAL and any(
        symbol for table, symbol in frame.zero_codes.items() if table >= FIRST_AC_TABLE
    )
    if are_zeros_unlikely and content.find(ZEROS, frame.data, content.rfind(END_OF_IMAGE)) >= 0:
        return "a stretch of zeros"
    return _jpeg_warning(content, frame.components)


def _jpeg_warning(content: bytes, components: int = 3) -> str:
    """libjpeg's first warning of damage, or ""; decoded at an eighth, which checks every bit nevertheless."""
    if simplejpeg is None:
        return ""
    colours = "CMYK" if components == 4 else "GRAY"
    try:
        simplejpeg.decode_jpeg(content, colours, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        text = str(error)
        return "" if HARMLESS.search(text) else text
    return ""


def _find_damage_with_pillow(content: bytes) -> str:
    """Pillow refuses compressed data that OpenCV fills in; "" also for what it cannot open."""
    try:
        picture = Image.open(io.BytesIO(content), formats=["TIFF", "JPEG2000"])
    except Exception:  # of a dozen kinds, for tags that it does not know
        return ""
    try:
        with picture:
            parts = _compressed_parts(picture, content)
            picture.load()
    except OSError as error:
        return str(error)
    except Exception:
        return ""
    return "a stretch of zeros" if any(LONG_ZEROS in part for part in parts) else ""


def _compressed_parts(picture: Image.Image, content: bytes) -> list[bytes]:
    """The compressed data of a JPEG 2000 or TIFF in which a long row of zeros cannot stand for pixels."""
    if picture.format == "JPEG2000":
        return [content[content.find(CODESTREAM) :].rstrip(b"\0")]
    tags = picture.tag_v2
    if tags.get(COMPRESSION) not in WITHOUT_CHECKSUM:
        return []
    offsets = tags.get(STRIP_OFFSETS) or tags[TILE_OFFSETS]
    sizes = tags.get(STRIP_SIZES) or tags[TILE_SIZES]
    return [content[start : start + size] for start, size in zip(offsets, sizes, strict=True)]


def _is_whole_png(content: memoryview) -> bool:
    """Whether all chunks that an image is made of are there, up to the last, and as they were written."""
    start = 8
    kind = b""
    while kind != b"IEND" and start < len(content):
        kind = bytes(content[start + 4 : start + 8])
        end = start + 12 + int.from_bytes(content[start : start + 4])
        checksum = int.from_bytes(content[end - 4 : end])
        if kind[:1].isupper() and zlib.crc32(content[start + 4 : end - 4]) != checksum:
            return False
        start = end
    return kind == b"IEND"
