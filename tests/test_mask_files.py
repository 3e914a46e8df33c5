"""Masks as annotation tools write them: every kind marks the pixels that were meant, whatever reads it."""

import io

import cv2
import numpy as np
import pytest
from conftest import texture, write_png
from image_files import GREY, encoded, encoded_frames, pnm, readable, tiff
from PIL import Image

from defects.data.mask_files import MaskFacts, are_inverted, examine_mask, read_mask
from defects.messages import UserError

SIZE = (120, 160)
MARKED = GREY > 128  # 24 x 40, ragged


def shape(seed=0):
    """float32 [H, W]: how much of each pixel a defect of round edges covers."""
    random = np.random.default_rng(seed)
    fine = np.zeros((8 * SIZE[0], 8 * SIZE[1]), np.uint8)
    for _ in range(3):
        center = (int(random.integers(200, 1000)), int(random.integers(200, 760)))
        axes = (int(random.integers(60, 180)), int(random.integers(40, 120)))
        cv2.ellipse(fine, center, axes, int(random.integers(180)), 0, 360, 1, -1)
    return cv2.resize(fine.astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_AREA)


COVER = shape()
TRUTH = COVER >= 0.5
MASK = np.where(TRUTH, 255, 0).astype(np.uint8)
SOFT = np.round(255 * COVER).astype(np.uint8)
WHITE = np.full((*SIZE, 3), 255, np.uint8)
# 1, 2, 3: parts of the defect side by side
LABELS = (TRUTH * (1 + np.arange(SIZE[1]) // 30 % 3)).astype(np.uint8)


def red(values):
    return np.dstack([values, 0 * values, 0 * values])


def palette(indices, *colours, **options):
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    return encoded(picture, options.pop("format", "PNG"), **options)


def rgba(colours, alpha):
    return np.dstack([colours, alpha])


def saved_anew(image, format, **options):
    """A PNG of what is left after a lossy file."""
    with Image.open(io.BytesIO(encoded(image, format, **options))) as picture:
        return encoded(picture, "PNG")


def on_background(background, paint, cover=TRUTH):
    """uint8 [H, W, 3]: a defect of one colour on another; `cover` [H, W]: its share of each pixel."""
    cover = cover[..., None]
    return np.round(cover * np.array(paint) + (1 - cover) * np.array(background)).astype(np.uint8)


PHOTOGRAPH = np.dstack([texture(0, SIZE[1])[: SIZE[0]]] * 3)
RED_ON_WHITE = (255, 255, 255), (255, 0, 0)
WHITE_ON_GREY = (80, 80, 80), (255, 255, 255)
BLACK_ON_WHITE = np.where(TRUTH[..., None], 0, 255).astype(np.uint8) * np.ones(3, np.uint8)
INDICES = TRUTH.astype(np.uint8)
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
GREYS = [(value, value, value) for value in range(256)]
KINDS = {  # name -> (content, kind that is told)
    "255.png": (encoded(MASK, "PNG"), "two levels"),
    "1.png": (encoded(MASK // 255, "PNG"), "two levels"),
    "1-bit.png": (encoded(TRUTH, "PNG"), "two levels"),
    "1-bit.tif": (encoded(TRUTH, "TIFF"), "two levels"),
    "white-is-zero.tif": (tiff(255 - MASK, t262=0), "two levels"),
    "16-bit-1.png": (encoded(INDICES.astype(np.uint16), "PNG"), "two levels"),
    "16-bit-65535.tif": (encoded(INDICES.astype(np.uint16) * 65535, "TIFF"), "two levels"),
    "maximum-1.pgm": (pnm(5, INDICES, 1), "two levels"),
    "labels.png": (encoded(LABELS, "PNG"), "labels"),
    "labels-apart.png": (encoded(LABELS * 80, "PNG"), "labels"),
    "labels-16-bit.tif": (encoded(LABELS.astype(np.uint16), "TIFF"), "labels"),
    "labels-coloured.png": (encoded(np.array(VOC, np.uint8)[LABELS], "PNG"), "colours"),
    "labels-from-1.png": (encoded(INDICES + 1, "PNG"), "two levels"),
    "dark-colour.png": (encoded(red(INDICES), "PNG"), "colours"),
    "red-on-white.png": (encoded(on_background(*RED_ON_WHITE), "PNG"), "colours"),
    "red-on-white-soft.png": (encoded(on_background(*RED_ON_WHITE, COVER), "PNG"), "colours"),
    "red-on-white.jpg": (encoded(on_background(*RED_ON_WHITE), "JPEG", quality=75), "jpeg"),
    "white-on-grey-soft.png": (encoded(on_background(*WHITE_ON_GREY, COVER), "PNG"), "many levels"),
    "white-on-grey.jpg": (encoded(on_background(*WHITE_ON_GREY), "JPEG", quality=75), "jpeg"),
    "soft.png": (encoded(SOFT, "PNG"), "many levels"),
    "soft-16-bit.png": (encoded(np.round(65535 * COVER).astype(np.uint16), "PNG"), "many levels"),
    "soft-red.png": (encoded(red(SOFT), "PNG"), "colours"),
    "blurred.png": (encoded(cv2.GaussianBlur(MASK, (0, 0), 1), "PNG"), "many levels"),
    "95.jpg": (encoded(MASK, "JPEG", quality=95), "jpeg"),
    "75.jpg": (encoded(MASK, "JPEG", quality=75), "jpeg"),
    "30.jpg": (encoded(MASK, "JPEG", quality=30), "jpeg"),
    "colour.jpg": (encoded(np.dstack([MASK] * 3), "JPEG", quality=75), "jpeg"),
    "half-bright.jpg": (encoded(MASK // 2, "JPEG", quality=75), "jpeg"),
    "lossy.webp": (encoded(np.dstack([MASK] * 3), "WEBP", quality=80), "jpeg"),
    "lossless.webp": (encoded(np.dstack([MASK] * 3), "WEBP", lossless=True), "two levels"),
    "x.avif": (encoded(np.dstack([MASK] * 3), "AVIF", quality=80), "jpeg"),
    "jpeg-100.png": (saved_anew(MASK, "JPEG", quality=100), "many levels"),
    "jpeg-75.png": (saved_anew(MASK, "JPEG", quality=75), "many levels"),
    "jpeg-red.png": (saved_anew(red(MASK), "JPEG", quality=75), "colours"),
    "webp.png": (saved_anew(MASK, "WEBP", quality=80), "colours"),
    "alpha-of-white.png": (encoded(rgba(WHITE, MASK), "PNG"), "alpha"),
    "alpha-of-black.png": (encoded(rgba(0 * WHITE, MASK), "PNG"), "alpha"),
    "alpha-soft.png": (encoded(rgba(WHITE, SOFT), "PNG"), "alpha"),
    "alpha-half.png": (encoded(rgba(red(MASK), MASK // 2), "PNG"), "alpha"),
    "alpha-black-paint.png": (encoded(rgba(BLACK_ON_WHITE, MASK), "PNG"), "alpha"),
    "alpha-and-labels.png": (encoded(rgba(np.array(VOC, np.uint8)[LABELS], MASK), "PNG"), "alpha"),
    "alpha-of-photograph.png": (encoded(rgba(PHOTOGRAPH, MASK), "PNG"), "alpha"),
    "alpha-cut-out.png": (encoded(rgba(PHOTOGRAPH * TRUTH[..., None], MASK), "PNG"), "alpha"),
    "alpha-full.png": (encoded(rgba(np.dstack([MASK] * 3), WHITE[..., 0]), "PNG"), "two levels"),
    "alpha-none.png": (encoded(rgba(np.dstack([MASK] * 3), 0 * MASK), "PNG"), "two levels"),
    "alpha-copy.png": (encoded(rgba(np.dstack([MASK] * 3), MASK), "PNG"), "alpha"),
    "alpha-of-grey.png": (encoded(np.dstack([WHITE[..., 0], MASK]), "PNG"), "alpha"),
    "alpha.webp": (encoded(rgba(WHITE, MASK), "WEBP", lossless=True, exact=True), "alpha"),
    "alpha.tif": (encoded(rgba(WHITE, MASK), "TIFF"), "alpha"),
    "palette-voc.png": (palette(LABELS, *VOC), "palette"),
    "palette-white-first.png": (palette(INDICES, (255, 255, 255), (255, 0, 0)), "palette"),
    "palette-white-and-black.png": (palette(INDICES, (255, 255, 255), (0, 0, 0)), "palette"),
    "palette-black-last.png": (palette(1 - INDICES, (255, 255, 255), (0, 0, 0)), "palette"),
    "palette-grey-first.png": (palette(LABELS, (200, 200, 200), *VOC[1:]), "palette"),
    "palette-clear.png": (palette(INDICES, (255, 255, 255), (255, 0, 0), transparency=0), "alpha"),
    "palette-soft.png": (palette(SOFT, *GREYS), "palette"),
    "palette-soft-reversed.png": (palette(255 - SOFT, *GREYS[::-1]), "palette"),
    "palette.bmp": (palette(INDICES, (255, 255, 255), (255, 0, 0), format="BMP"), "palette"),
    "palette.gif": (palette(INDICES, (255, 255, 255), (255, 0, 0), format="GIF"), "palette"),
    "palette.tif": (palette(INDICES, (255, 255, 255), (255, 0, 0), format="TIFF"), "palette"),
}


@pytest.mark.parametrize("name", list(map(readable, KINDS)))
def test_examine_mask_of_every_kind(tmp_path, name):
    content, kind = KINDS[name]
    (tmp_path / name).write_bytes(content)
    mask, facts = examine_mask(tmp_path / name)
    assert mask.dtype == bool and mask.shape == SIZE
    assert mask.sum() / TRUTH.sum() == pytest.approx(1, abs=0.03)
    assert (mask & TRUTH).sum() / (mask | TRUTH).sum() > 0.95
    assert facts == MaskFacts(160, 120, mask.mean(), facts.kind, "", 0)
    assert facts.kind == kind or kind is None
    np.testing.assert_array_equal(read_mask(tmp_path / name), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / name, inverted=True), ~mask)


ENCODINGS = {
    "1.png": lambda cover: encoded((cover >= 0.5).astype(np.uint8), "PNG"),
    "255.bmp": lambda cover: encoded((cover >= 0.5).astype(np.uint8) * 255, "BMP"),
    "soft.png": lambda cover: encoded(np.round(255 * cover).astype(np.uint8), "PNG"),
    "soft-16-bit.tif": lambda cover: encoded(np.round(65535 * cover).astype(np.uint16), "TIFF"),
    "90.jpg": lambda cover: encoded(np.where(cover >= 0.5, 255, 0).astype(np.uint8), "JPEG", quality=90),
    "alpha.png": lambda cover: encoded(rgba(0 * WHITE, np.round(255 * cover).astype(np.uint8)), "PNG"),
    "green-on-white.png": lambda cover: encoded(on_background((255, 255, 255), (0, 200, 0), cover), "PNG"),
    "palette.gif": lambda cover: palette((cover >= 0.5).astype(np.uint8), *VOC, format="GIF"),
}


@pytest.mark.parametrize("name", list(map(readable, ENCODINGS)))
def test_read_mask_of_random_shapes(tmp_path, name):
    for seed in range(20):
        cover = shape(seed)
        truth = cover >= 0.5
        (tmp_path / name).write_bytes(ENCODINGS[name](cover))
        mask = read_mask(tmp_path / name)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.95, f"seed {seed}"


@pytest.mark.parametrize("value", [1, 128, 255])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_read_mask_marks_everything_that_is_not_black(tmp_path, value, suffix):
    Image.fromarray(np.where(MARKED, value, 0).astype(np.uint8)).save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"m.{suffix}"), MARKED)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA"])
def test_read_mask_of_several_modes(tmp_path, mode):
    Image.fromarray(np.where(MARKED, 255, 0).astype(np.uint8)).convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), MARKED)


@pytest.mark.parametrize("color", [(1, 1, 1), (0, 0, 1), (255, 0, 0), (0, 0, 255), (0, 128, 0)])
def test_read_mask_of_colours(tmp_path, color):
    path = write_png(tmp_path / "m.png", np.where(MARKED[..., None], color, 0).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(path), MARKED)


@pytest.mark.parametrize("value", [1, 255, 257, 65535])
def test_read_mask_of_16_bits(tmp_path, value):
    Image.fromarray(np.where(MARKED, value, 0).astype(np.uint16)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), MARKED)


def test_read_mask_of_labels_that_change_along_a_scratch(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[10, 20:140] = 1 + np.arange(120) // 2 % 4
    np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", mask)), mask > 0)


def test_read_mask_of_thin_labels(tmp_path):
    """Scratches of one pixel with labels of their own, beside a larger area."""
    mask = np.zeros(SIZE, np.uint8)
    for label, row in enumerate((10, 20, 30, 40), 1):
        mask[row, 20:140] = label
    mask[60:100, 40:80] = 9
    np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", mask)), mask > 0)


@pytest.mark.parametrize("labels", [(1, 2, 3), (1, 6, 7), (1, 2, 3, 255), (1, 100, 200), (85, 170, 255)])
def test_read_mask_of_labels_of_any_values(tmp_path, labels):
    mask = np.zeros(SIZE, np.uint8)
    for place, label in enumerate(labels):
        mask[20:60, 10 + 30 * place : 35 + 30 * place] = label
    np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", mask)), mask > 0)


def test_read_mask_of_many_labels(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    for label in range(1, 200):
        row, column = divmod(label, 25)
        mask[12 * row + 2 : 12 * row + 9, 6 * column + 2 : 6 * column + 6] = label
    np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", mask)), mask > 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_examine_mask_of_an_empty_one(tmp_path, suffix):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / f"m.{suffix}")
    mask, facts = examine_mask(tmp_path / f"m.{suffix}")
    assert not mask.any() and facts.share == 0 and facts.doubt == ""


def test_examine_mask_mentions_an_ignore_value(tmp_path):
    mask = LABELS.copy()
    mask[cv2.dilate(MASK, np.ones((5, 5), np.uint8)) > MASK] = 255
    marked, facts = examine_mask(write_png(tmp_path / "m.png", mask))
    np.testing.assert_array_equal(marked, mask > 0)
    assert "255 beside smaller labels" in facts.doubt


DOUBTS = {  # name -> (pixels, what is said)
    "inverted": (255 - MASK, "if it is inverted, set data.inverted_masks=true"),
    "everything": (WHITE[..., 0], "marks nearly all of its image"),
    "picture": (np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8), "a picture or a heat map"),
    "faint": (np.maximum(SOFT, np.roll(SOFT // 4, 60, axis=0)), "less than half as bright"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_examine_mask_doubts_what_is_implausible(tmp_path, name):
    pixels, text = DOUBTS[name]
    assert text in examine_mask(write_png(tmp_path / "m.png", pixels))[1].doubt


def test_examine_mask_of_a_defect_that_covers_most_of_an_image(tmp_path):
    mask = np.full(SIZE, 255, np.uint8)
    mask[:50, :60] = 0
    marked, facts = examine_mask(write_png(tmp_path / "m.png", mask))
    np.testing.assert_array_equal(marked, mask > 0)
    assert facts.share > 0.8 and not are_inverted([facts] * 2)


def facts_of(tmp_path, *masks):
    return [examine_mask(write_png(tmp_path / "m.png", mask.astype(np.uint8)))[1] for mask in masks]


def test_are_inverted_of_an_inverted_set(tmp_path):
    inverted = [255 * (shape(seed) < 0.5) for seed in range(4)]
    assert are_inverted(facts_of(tmp_path, *inverted))
    assert are_inverted(facts_of(tmp_path, *inverted, 0 * MASK + 255))  # and one where nothing is defective


def test_are_inverted_of_other_sets(tmp_path):
    plain = [255 * (shape(seed) >= 0.5) for seed in range(4)]
    inverted = [255 - mask for mask in plain]
    large = np.zeros(SIZE, np.uint8)
    large[:, :130] = 255
    assert not are_inverted([])
    assert not are_inverted(facts_of(tmp_path, *plain))
    assert not are_inverted(facts_of(tmp_path, *inverted[:2]))  # too few to be sure
    assert not are_inverted(facts_of(tmp_path, *inverted[:3], *plain))
    assert not are_inverted(facts_of(tmp_path, *inverted, 0 * MASK))  # one marks nothing
    assert not are_inverted(facts_of(tmp_path, large, large, large))
    assert not are_inverted(facts_of(tmp_path, *[WHITE[..., 0]] * 4))  # whole images


@pytest.mark.parametrize("setting", [True, False])
def test_are_inverted_by_setting(tmp_path, setting):
    assert are_inverted(facts_of(tmp_path, MASK, 255 - MASK), setting) == setting


def test_read_mask_refuses_several_pages(tmp_path):
    (tmp_path / "m.tif").write_bytes(encoded_frames("TIFF"))
    with pytest.raises(UserError, match=r"m\.tif holds 3 pages: one picture per file"):
        read_mask(tmp_path / "m.tif")


@pytest.mark.parametrize("kind", ["palette-voc.png", "alpha-of-white.png", "255.png"])
def test_read_mask_applies_exif_orientation(tmp_path, kind):
    (tmp_path / kind).write_bytes(KINDS[kind][0])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / kind) as picture:
        picture.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "turned.png"), np.rot90(TRUTH, -1))
