"""What cannot be used is named for what it is, and never read as something else."""

import re

import numpy as np
import pytest
from conftest import texture
from image_files import (
    ALPHA,
    DEEP,
    DEEP_RGB,
    GREY,
    HEIGHT,
    RGB,
    WIDTH,
    encoded,
    encoded_by_opencv,
    encoded_frames,
    pnm,
    tiff,
)
from PIL import Image

from defects.data.images import ImageFacts, examine_image, read_image
from defects.data.mask_files import read_mask
from defects.messages import UserError

FLOAT = GREY.astype(np.float32) / 255
BANDS = np.dstack([GREY] * 5)


def changed_jpeg(marker: int = 0xC0, precision: int = 8) -> bytes:
    content = bytearray(encoded(RGB, "JPEG"))
    start = content.index(b"\xff\xc0\0")
    content[start + 1] = marker
    content[start + 4] = precision
    return bytes(content)


def turned_avif(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(RGB, "AVIF", exif=exif)


REFUSED = {  # name -> (content, what is said)
    "pages.tif": (encoded_frames("TIFF"), "3 pages: one picture per file"),
    "pages-of-one.tif": (tiff(GREY, (0, 0)), "2 pages: one picture per file"),
    "frames.gif": (encoded_frames("GIF"), "3 frames: one picture per file"),
    "frames.webp": (encoded_frames("WEBP"), "3 frames: one picture per file"),
    "frames.png": (encoded_frames("PNG"), "3 frames: one picture per file"),
    "frames.avif": (encoded_frames("AVIF", 2), "2 frames: one picture per file"),
    "thumbnail.tif": (tiff(GREY, (1, 0)), "a thumbnail before the picture: save the picture alone"),
    "float.tif": (encoded(FLOAT, "TIFF"), "32-bit float: convert to 8 or 16 bits"),
    "half.tif": (tiff(FLOAT.astype(np.float16)), "16-bit float: convert to 8 or 16 bits"),
    "double.tif": (encoded_by_opencv(FLOAT.astype(np.float64), ".tiff"), "64-bit float: convert to"),
    "colour-float.tif": (tiff(np.dstack([FLOAT] * 3)), "32-bit float: convert to 8 or 16 bits"),
    "integer.tif": (encoded(DEEP.astype(np.int32), "TIFF"), "32-bit signed integers: convert to"),
    "unsigned.tif": (tiff(DEEP.astype(np.uint32)), "32-bit integers: convert to 8 or 16 bits"),
    "long.tif": (tiff(DEEP.astype(np.uint64)), "64-bit integers: convert to 8 or 16 bits"),
    "signed.tif": (tiff((DEEP.astype(int) - 32768).astype(np.int16)), "16-bit signed integers: convert"),
    "bands.tif": (tiff(BANDS, t262=1, t338=(0, 0, 0, 0)), "5 bands: convert to grey or RGB"),
    "rgb-bands.tif": (tiff(BANDS, t338=(0, 0)), "5 bands: convert to grey or RGB"),
    "two-bands.tif": (tiff(BANDS[..., :2].copy(), t338=0), "2 bands: convert to grey or RGB"),
    "cmyk.tif": (tiff(np.dstack([DEEP_RGB, DEEP]), t262=5), "CMYK with 16 bits: convert to RGB"),
    "lab.tif": (tiff(RGB, t262=8), "Lab colours: convert to RGB"),
    "mosaic.tif": (tiff(GREY, t262=32803), "a TIFF of colour model 32803: convert to grey or RGB"),
    "zstd.tif": (tiff(RGB, t259=50000), "a TIFF of compression 50000: save it with LZW"),
    "jpeg2000.tif": (tiff(RGB, t259=34712), "a TIFF of compression 34712: save it with LZW"),
    "nibbles.tif": (tiff(GREY.tobytes()[: HEIGHT * WIDTH // 2], t258=4, t277=1), "4-bit values: convert"),
    "planes.tif": (tiff(DEEP_RGB, t284=2), "16-bit planes stored one by one"),
    "alpha.tif": (tiff(np.dstack([DEEP, DEEP]), t338=2), "16-bit grey with alpha: remove the alpha"),
    "deep.jpg": (changed_jpeg(precision=12), "a 12-bit JPEG: convert to PNG"),
    "lossless.jpg": (changed_jpeg(marker=0xC3), "a lossless JPEG: convert to PNG"),
    "radiance.png": (encoded_by_opencv(np.dstack([FLOAT] * 3), ".hdr"), "32-bit float: convert to"),
    "map.png": (encoded_by_opencv(FLOAT, ".pfm"), "32-bit float: convert to 8 or 16 bits"),
    "open.png": (b"\x76\x2f\x31\x01\x02\0\0\0", "OpenEXR, a floating-point format"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: convert to JPEG or PNG"),
    "phone2.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC: convert to JPEG or PNG"),
    "turned.avif": (turned_avif(6), "an AVIF with a mark to turn or mirror it: convert to PNG"),
    "mirrored.avif": (turned_avif(2), "an AVIF with a mark to turn or mirror it: convert to PNG"),
    "fetch.jpg": (b"version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS"),
    "login.jpg": (b"<!DOCTYPE html><html>", "an HTML page: download the file again"),
    "many.png": (b"PK\x03\x04\x14", "a ZIP archive: unpack it"),
    "frames.pgm": (2 * pnm(5, GREY, 255), "2 frames: one picture per file"),
    "xl.jpg": (b"\xff\x0a\0\0", "JPEG XL: convert to PNG"),
    "alpha.pam": (encoded_by_opencv(np.dstack([RGB, ALPHA]), ".pam"), "a PAM with alpha or of one bit"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("read", [read_image, read_mask, examine_image])
def test_header_names_why_a_file_cannot_be_used(tmp_path, name, read):
    content, text = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{name} holds {text}")):
        read(tmp_path / name)


@pytest.mark.parametrize("subfiles", [(0, 1), (0, 1, 1), (0, 4), (1,)])
def test_header_of_a_tiff_with_smaller_copies(tmp_path, subfiles):
    (tmp_path / "x.tif").write_bytes(tiff(GREY, subfiles))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[..., 0], GREY)


FACTS = {  # name -> (content, bits, channels, largest)
    "one.png": (encoded(GREY > 128, "PNG"), 1, "grey", 1),
    "grey.png": (encoded(GREY, "PNG"), 8, "grey", GREY.max()),
    "rgba.png": (encoded(np.dstack([RGB, ALPHA]), "PNG"), 8, "RGBA", RGB.max()),
    "deep.png": (encoded(DEEP, "PNG"), 16, "grey", DEEP.max()),
    "deep-rgb.png": (encoded_by_opencv(DEEP_RGB, ".png"), 16, "RGB", DEEP_RGB.max()),
    "palette.png": (encoded(Image.fromarray(RGB).quantize(16), "PNG"), 4, "palette", None),
    "grey.jpg": (encoded(texture(0), "JPEG"), 8, "grey", None),
    "cmyk.jpg": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), 8, "CMYK", None),
    "deep.tif": (encoded(DEEP, "TIFF"), 16, "grey", DEEP.max()),
    "big-endian.tif": (tiff(DEEP_RGB, order=">"), 16, "RGB", DEEP_RGB.max()),
    "grey.bmp": (encoded(GREY, "BMP"), 8, "grey", GREY.max()),
    "palette.bmp": (encoded(Image.fromarray(RGB).quantize(16), "BMP"), 8, "palette", None),
    "twelve.pgm": (pnm(5, DEEP >> 4, 4095), 12, "grey", DEEP.max() >> 4),
    "rgb.ppm": (encoded(RGB, "PPM"), 8, "RGB", RGB.max()),
    "deep.jp2": (encoded(DEEP, "JPEG2000"), 16, "grey", DEEP.max()),
    "grey.webp": (encoded(RGB, "WEBP", lossless=True), 8, "RGB", RGB.max()),
}


@pytest.mark.parametrize("name", FACTS)
def test_header_tells_the_stored_values(tmp_path, name):
    content, bits, channels, largest = FACTS[name]
    (tmp_path / name).write_bytes(content)
    facts = examine_image(tmp_path / name)
    assert facts[2:4] == (bits, channels)
    assert facts.largest == largest or largest is None
    shape = read_image(tmp_path / name).shape
    assert facts == ImageFacts(shape[1], shape[0], *facts[2:])
