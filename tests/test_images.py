"""Reading and resizing images of every format and file name, and refusing broken ones by name."""

import io
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import texture, write_png
from image_files import encoded, encoded_by_opencv, readable, tiff
from PIL import Image, ImageOps

from defects.data import images
from defects.data.images import (
    IMAGE_SUFFIXES,
    OPENCV_RELEASE,
    REDUCED_MODES,
    read_image,
    read_image_and_shape,
    resize,
    resize_mask,
    windows,
)
from defects.data.mask_files import read_mask
from defects.messages import UserError

HEIGHT, WIDTH = 24, 40
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = RGB[..., 1]
# A gradient survives lossy compression; its channels differ, so a swap of red and blue shows.
RAMP = np.add.outer(4 * np.arange(HEIGHT), 3 * np.arange(WIDTH)).astype(np.uint8)
SMOOTH = np.dstack([RAMP, RAMP[::-1], 255 - RAMP])
LOSSLESS = {"webp": {"lossless": True, "exact": True}}
FINE_JPEG = {"quality": 100, "subsampling": 0}
FORMATS = {  # name -> (file name, options of Pillow) of a colour image
    "jpeg": ("x.jpg", {}),
    "progressive": ("x.jpeg", {"progressive": True}),
    "png": ("x.png", {}),
    "tiff": ("x.tif", {}),
    "tiff-lzw": ("x.tiff", {"compression": "tiff_lzw"}),
    "webp": ("x.webp", {}),
    "webp-lossless": ("x.webp", LOSSLESS["webp"]),
    "bmp": ("x.bmp", {}),
}


def _three(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey] * 3)


def _save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **(LOSSLESS.get(path.suffix[1:], {}) | options))
    return path


def _encoded(kind: str) -> tuple[str, bytes]:
    """A colour picture in one of FORMATS: file name and content."""
    name, options = FORMATS[kind]
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
    return name, buffer.getvalue()


def _assert_refused(path: Path) -> None:
    for read in (read_image, read_mask):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "PNG"])
@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_read_image_of_lossless_formats(tmp_path, suffix, kind):
    source = GREY if kind == "grey" else RGB
    image_read = read_image(_save(tmp_path / f"x.{suffix}", Image.fromarray(source)))
    assert image_read.dtype == np.uint8
    np.testing.assert_array_equal(image_read, _three(GREY) if kind == "grey" else RGB)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "webp"])
@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_read_image_of_lossy_formats(tmp_path, suffix, kind):
    source, expected = (RAMP, _three(RAMP)) if kind == "grey" else (SMOOTH, SMOOTH)
    options = FINE_JPEG if suffix != "webp" else {"lossless": False, "quality": 100}
    image_read = read_image(_save(tmp_path / f"x.{suffix}", Image.fromarray(source), **options))
    assert np.abs(image_read.astype(int) - expected).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_read_image_scales_16_bit_grey(tmp_path, suffix):
    deep = RANDOM.integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
    image_read = read_image(_save(tmp_path / f"x.{suffix}", Image.fromarray(deep)))
    assert image_read.dtype == np.uint8
    assert np.abs(image_read - _three(deep) / 257).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_read_image_scales_16_bit_colour(tmp_path, suffix, channels):
    deep = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, channels), np.uint16)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(cv2.imencode(suffix, deep)[1].tobytes())
    assert np.abs(read_image(path) - deep[..., 2::-1] / 257).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_read_image_resolves_palettes(tmp_path, suffix):
    image = Image.fromarray(RGB).quantize(16)
    image_read = read_image(_save(tmp_path / f"x.{suffix}", image))
    np.testing.assert_array_equal(image_read, np.array(image.convert("RGB")))


def test_read_image_of_a_transparent_palette_entry(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    image_read = read_image(_save(tmp_path / "x.png", image, transparency=3))
    np.testing.assert_array_equal(image_read, np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_read_image_drops_alpha_and_does_not_blend_it(tmp_path, suffix):
    image_read = read_image(_save(tmp_path / f"x.{suffix}", Image.fromarray(np.dstack([RGB, ALPHA]))))
    np.testing.assert_array_equal(image_read, RGB)


@pytest.mark.parametrize("alpha", [ALPHA, np.full_like(ALPHA, 255), np.zeros_like(ALPHA)])
def test_read_image_of_a_tiff_with_alpha(tmp_path, alpha):
    image = Image.fromarray(np.dstack([RGB, alpha]))
    for options in ({}, {"compression": "tiff_lzw"}):
        np.testing.assert_array_equal(read_image(_save(tmp_path / "x.tiff", image, **options)), RGB)


@pytest.mark.parametrize("order", "<>")
def test_read_image_of_a_16_bit_tiff_keeps_red_and_blue(tmp_path, order):
    deep = RGB.astype(np.uint16) * 257
    (tmp_path / "x.tif").write_bytes(tiff(deep, order=order))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), RGB)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_read_image_of_grey_with_alpha(tmp_path, suffix):
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    np.testing.assert_array_equal(read_image(_save(tmp_path / f"x.{suffix}", image)), _three(GREY))


@pytest.mark.parametrize(("suffix", "options"), [("jpg", FINE_JPEG), ("tiff", {})])
def test_read_image_of_cmyk(tmp_path, suffix, options):
    image = Image.fromarray(SMOOTH).convert("CMYK")
    image_read = read_image(_save(tmp_path / f"x.{suffix}", image, **options))
    assert np.abs(image_read.astype(int) - np.array(image.convert("RGB"))).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_read_image_of_one_bit(tmp_path, suffix):
    bits = GREY > 128
    image_read = read_image(_save(tmp_path / f"x.{suffix}", Image.fromarray(bits)))
    np.testing.assert_array_equal(image_read, _three(np.where(bits, 255, 0)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path, suffix, orientation):
    if suffix == "webp" and orientation > 1 and OPENCV_RELEASE < (4, 13):
        pytest.skip("refused with this OpenCV")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = FINE_JPEG if suffix == "jpg" else {}
    path = _save(tmp_path / f"x.{suffix}", Image.fromarray(SMOOTH), exif=exif, **options)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    image_read = read_image(path)
    assert image_read.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    assert np.abs(image_read.astype(int) - expected).max() <= 4
    assert read_mask(path).shape == image_read.shape[:2]


@pytest.mark.parametrize("orientation", [1, 3])
def test_read_image_refuses_a_rotated_webp_where_opencv_ignores_it(tmp_path, monkeypatch, orientation):
    monkeypatch.setattr(images, "OPENCV_RELEASE", (4, 12, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "x.webp", Image.fromarray(SMOOTH), exif=exif)
    refused = pytest.raises(
        UserError, match="x.webp is a WebP with a mark to turn or mirror it, which OpenCV"
    )
    with refused if orientation > 1 else nullcontext():
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff", "webp"])
def test_read_image_names_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.touch()
    _assert_refused(path)


@pytest.mark.parametrize("length", [0.05, 0.3, 0.7, 0.95, -20, -13, -8, -1])
@pytest.mark.parametrize("kind", FORMATS)
def test_read_image_names_a_truncated_file(tmp_path, capfd, kind, length):
    name, content = _encoded(kind)
    path = tmp_path / name
    path.write_bytes(content)
    assert read_image(path).shape == RGB.shape
    path.write_bytes(content[: length if length < 0 else int(length * len(content))])
    _assert_refused(path)
    assert capfd.readouterr().err == ""  # no line of libpng or libjpeg beside the program's own


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "tiff-lzw"])
def test_read_image_names_an_interrupted_download_of_full_length(tmp_path, kind):
    name, content = _encoded(kind)
    half = len(content) // 2
    (tmp_path / name).write_bytes(content[:half] + bytes(len(content) - half))
    _assert_refused(tmp_path / name)


@pytest.mark.parametrize("content", [b"just text\n", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\0" * 1000])
def test_read_image_names_a_file_that_is_no_image(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    _assert_refused(path)


def test_read_image_goes_by_content_and_not_by_suffix(tmp_path):
    write_png(tmp_path / "x.png", RGB).rename(tmp_path / "x.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), RGB)


def test_read_image_ignores_bytes_behind_the_image(tmp_path):
    for kind in ("png", "jpeg"):
        name, content = _encoded(kind)
        (tmp_path / name).write_bytes(content)
        expected = read_image(tmp_path / name)
        (tmp_path / name).write_bytes(content + b"trailer of a camera")
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


BY_PILLOW = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".jpx"),
    "PPM": (".pgm", ".pnm", ".pxm"),
}
SUFFIXES = {suffix: encoded(SMOOTH, name) for name, group in BY_PILLOW.items() for suffix in group}
SUFFIXES |= {suffix: encoded(SMOOTH, "JPEG2000", no_jp2=True) for suffix in (".j2k", ".j2c", ".jpc")}
SUFFIXES |= {suffix: encoded_by_opencv(SMOOTH, suffix) for suffix in (".ras", ".sr", ".ppm")}
PAM = f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n".encode()
SUFFIXES[".pam"] = PAM + SMOOTH.tobytes()
SUFFIXES[".pbm"] = encoded(RAMP > 128, "PPM")


@pytest.mark.parametrize("suffix", list(map(readable, sorted(IMAGE_SUFFIXES))))
def test_read_image_of_every_suffix(tmp_path, suffix):
    (tmp_path / f"x{suffix}").write_bytes(SUFFIXES[suffix])
    image_read = read_image(tmp_path / f"x{suffix}").astype(int)
    if suffix == ".pbm":
        np.testing.assert_array_equal(image_read, _three(np.where(RAMP > 128, 255, 0)))
    else:
        assert np.abs(image_read - SMOOTH).mean() < 12  # lossy ones too, and the palette of the GIF


@pytest.mark.parametrize("kind", ["AVIF", "GIF"])
def test_read_image_of_a_format_that_this_opencv_lacks(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"  PNG: build\n  {kind}:        NO\n  HDR: YES")
    monkeypatch.setattr(cv2, "imdecode", lambda content, mode: None)
    (tmp_path / "x").write_bytes(encoded(SMOOTH, kind))
    with pytest.raises(UserError, match=f"reads no {kind} files: convert it to PNG, or install opencv"):
        read_image(tmp_path / "x")


def test_read_image_of_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"x\.png does not exist; run src/prepare\.py"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    "name", ["a b.png", "Prüfstück.png", "u\u0308.png", "缺陷 1.png", "дефект.png", "#%&'.png"]
)
def test_read_image_of_any_file_name(tmp_path, name):
    path = write_png(tmp_path / "Ordner mit ß" / name, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize(
    ("shape", "factor"), [((1800, 2000), 8), ((1000, 1800), 4), ((900, 500), 2), ((440, 1800), 1)]
)
def test_read_image_decodes_a_large_jpeg_at_a_fraction(tmp_path, monkeypatch, shape, factor):
    modes = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, mode: modes.append(mode) or decode(content, mode))
    path = _save(tmp_path / "x.jpg", Image.fromarray(resize(SMOOTH, shape)))
    assert read_image(path, (224, 224)).shape == (224, 224, 3)
    assert modes == [cv2.IMREAD_COLOR_RGB if factor == 1 else REDUCED_MODES[factor]]


@pytest.mark.parametrize("shape", [(449, 511), (2047, 901), (1001, 1103)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_read_image_and_shape_of_a_jpeg_at_a_fraction_fits_its_mask(tmp_path, shape, orientation):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 5 : shape[0] // 2, shape[1] // 2 : shape[1] * 9 // 10] = True
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: shown a quarter turn clockwise
    path = tmp_path / "x.jpg"
    _save(path, Image.fromarray(np.where(mask, 255, 60).astype(np.uint8)), exif=exif, quality=98)
    mask = mask if orientation == 1 else np.rot90(mask, -1)
    image, original_shape = read_image_and_shape(path, (96, 112))
    expected = resize_mask(mask, (96, 112)).astype(np.uint8)
    inside = cv2.erode(expected, np.ones((3, 3))) > 0
    around = cv2.dilate(expected, np.ones((3, 3))) > 0
    assert original_shape == mask.shape
    assert image[inside].min() > 200
    assert image[~around].max() < 100


def test_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize(RGB, (HEIGHT, WIDTH)), RGB)


@pytest.mark.parametrize("size", [(12, 20), (7, 9), (48, 80), (24, 100), (12, 80), (1, 1)])
@pytest.mark.parametrize("source", [RGB, GREY], ids=["rgb", "grey"])
def test_resize_gives_height_and_width_in_this_order(source, size):
    image_read = resize(source, size)
    assert image_read.shape == size + source.shape[2:]
    assert image_read.dtype == np.uint8


@pytest.mark.parametrize("size", [(12, 20), (8, 8), (6, 13), (48, 48), (33, 70), (16, 64), (128, 8)])
def test_resize_preserves_the_mean(size):
    image = texture(1, 32)
    assert resize(image, size).mean() == pytest.approx(image.mean(), abs=1.5)


def test_resize_averages_and_does_not_skip_pixels():
    image = np.zeros((32, 32), np.float32)
    image[5, 6] = 64
    assert resize(image, (4, 4)).max() == pytest.approx(1)


def test_resize_mask_keeps_a_defect_of_one_pixel():
    mask = np.zeros((500, 500), bool)
    mask[123, 456] = True
    image_read = resize_mask(mask, (16, 16))
    assert image_read.dtype == bool
    assert np.argwhere(image_read).tolist() == [[123 * 16 // 500, 456 * 16 // 500]]


def test_resize_mask_stays_in_place():
    mask = np.zeros((16, 16), bool)
    mask[4:8, 8:12] = True
    grown = resize_mask(mask, (32, 32))
    assert grown[8:16, 16:24].all()
    assert not grown[:6].any()
    assert not grown[:, :14].any()


@pytest.mark.parametrize("size", [(64, 96), (40, 48), (41, 200), (20, 300)])
def test_windows_are_of_one_size_and_cover_everything(size):
    coverage = np.zeros(size, int)
    for window in windows(size, (40, 48)):
        assert coverage[window].shape == (min(40, size[0]), min(48, size[1]))
        coverage[window] += 1
    assert coverage.all()
    assert windows(size, None) == [(slice(0, size[0]), slice(0, size[1]))]
