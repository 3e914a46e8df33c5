"""Damage within files that decoders take: named by prepare and predict, and no line without a file name."""

import numpy as np
import pytest
from conftest import texture, write_dataset
from image_files import encoded, with_thumbnail
from PIL import Image

from defects.config import load_config
from defects.data import damage
from defects.data.images import examine_image, read_image
from defects.data.index import prepare
from defects.data.mask_files import examine_mask
from defects.messages import UserError

PHOTO = np.dstack([texture(0, 256), texture(1, 256), texture(2, 256)])
KINDS = {
    "baseline": {},
    "full colour": {"subsampling": 0},
    "own tables": {"optimize": True},
    "grey": {},
    "progressive": {"progressive": True},
    "restarts by row": {"restart_marker_rows": 1},
    "restarts by block": {"restart_marker_blocks": 4},
    "cmyk": {},
}


def photo(kind="baseline", quality=90):
    image = Image.fromarray(PHOTO)
    modes = {"grey": "L", "cmyk": "CMYK"}
    return encoded(image.convert(modes.get(kind, "RGB")), "JPEG", quality=quality, **KINDS[kind])


def hole(content, start, length):
    return content[:start] + bytes(length) + content[start + length :]


def missing(content, start, length):
    return content[:start] + content[start + length :]


def mixed_up(content, start, length):
    random = np.random.default_rng(start).integers(0, 255, length, np.uint8).tobytes()
    return content[:start] + random + content[start + length :]


def refusal(path, content, examine=examine_image):
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        examine(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_none_in_intact_jpegs(tmp_path, capfd, kind):
    (tmp_path / "x.jpg").write_bytes(photo(kind))
    assert examine_image(tmp_path / "x.jpg").width == 256
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damaged", [hole, missing, mixed_up])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_of_a_jpeg(tmp_path, capfd, kind, damaged):
    content = photo(kind)
    for share in (0.3, 0.5, 0.7):
        text = refusal(tmp_path / "x.jpg", damaged(content, int(share * len(content)), 600))
        assert "replace or remove it" in text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
def test_damage_at_the_end_of_a_jpeg_with_a_thumbnail(tmp_path, kind, is_strict):
    content = with_thumbnail(photo(kind), encoded(PHOTO[::8, ::8].copy(), "JPEG"))
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert read_image(path, is_strict=is_strict).shape == PHOTO.shape
    half = len(content) // 2
    path.write_bytes(hole(content, half, len(content) - half))
    with pytest.raises(UserError, match=r"x\.jpg is (empty, truncated|damaged)"):
        read_image(path, is_strict=is_strict)


def test_damage_at_random_bytes_of_a_jpeg(tmp_path):
    """Some leave a valid file: no decoder can tell that a bit of an amplitude was another."""
    random = np.random.default_rng(0)
    content = photo()
    start = content.index(b"\xff\xda") + 14
    named_count = 0
    for _ in range(100):
        changed = bytearray(content)
        for place in random.integers(start, len(content) - 2, 8):
            changed[place] = random.integers(256)
        (tmp_path / "x.jpg").write_bytes(changed)
        try:
            examine_image(tmp_path / "x.jpg")
        except UserError:
            named_count += 1
    assert named_count >= 75


@pytest.mark.parametrize("flat", [0, 255, 128])
def test_damage_none_in_a_flat_jpeg(tmp_path, flat):
    image = np.full((2000, 2000), flat, np.uint8)
    for options in ({}, {"optimize": True}, {"progressive": True}):
        (tmp_path / "x.jpg").write_bytes(encoded(image, "JPEG", **options))
        assert examine_image(tmp_path / "x.jpg").largest == pytest.approx(flat, abs=1)


def test_damage_none_in_a_jpeg_padded_by_a_camera(tmp_path, capfd):
    """libjpeg counts bytes between the data and the end mark, and prints that without a name."""
    content = photo()
    (tmp_path / "x.jpg").write_bytes(content[:-2] + bytes(30) + content[-2:])
    examine_image(tmp_path / "x.jpg")
    padded = read_image(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(content)
    np.testing.assert_array_equal(padded, read_image(tmp_path / "x.jpg"))
    assert capfd.readouterr().err == ""


def test_damage_without_simplejpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "simplejpeg", None)
    content = photo()
    refusal(tmp_path / "x.jpg", content[: len(content) // 2])
    refusal(tmp_path / "x.jpg", hole(content, len(content) // 2, 600))
    (tmp_path / "x.jpg").write_bytes(content)
    assert examine_image(tmp_path / "x.jpg").width == 256


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_damage_in_a_compressed_tiff(tmp_path, compression):
    content = encoded(PHOTO, "TIFF", compression=compression)
    (tmp_path / "x.tif").write_bytes(content)
    examine_image(tmp_path / "x.tif")
    refusal(tmp_path / "x.tif", hole(content, len(content) // 2, 600))


def test_damage_in_a_jpeg_2000(tmp_path):
    content = encoded(PHOTO, "JPEG2000")
    assert "zeros" in refusal(tmp_path / "x.jp2", hole(content, len(content) // 2, 3000))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG2000", {}),
        ("JPEG2000", {"irreversible": True, "quality_layers": [20]}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_damage_none_in_flat_pictures(tmp_path, format, options, value):
    flat = np.full((700, 700, 3), value, np.uint8)
    (tmp_path / "x").write_bytes(encoded(flat, format, **options))
    assert examine_image(tmp_path / "x").largest == value


def test_damage_at_the_end_of_a_jpeg_2000(tmp_path):
    content = encoded(PHOTO, "JPEG2000")
    (tmp_path / "x.jp2").write_bytes(content)
    examine_image(tmp_path / "x.jp2")
    half = len(content) // 2
    refusal(tmp_path / "x.jp2", hole(content, half, len(content) - half))


FORMATS = ["PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95, -1])
def test_damage_by_truncation_in_any_format(tmp_path, capfd, format, share):
    content = encoded(PHOTO[:64, :64].copy(), format)
    content = content[:-1] if share == -1 else content[: int(share * len(content))]
    refusal(tmp_path / "x.png", content)
    refusal(tmp_path / "x.png", content, read_image)
    assert capfd.readouterr().err == ""


def test_damage_in_a_mask(tmp_path):
    mask = np.zeros((200, 200), np.uint8)
    mask[50:90, 60:160] = 255
    content = encoded(mask, "JPEG")
    start = content.index(b"\xff\xda") + 40
    refusal(tmp_path / "x.jpg", missing(content, start, 100), examine_mask)


def test_damage_is_named_by_prepare_for_every_image(tmp_path, config_file, capfd):
    root = write_dataset(tmp_path / "data", defects=3, normals=6, tests=0)
    content = photo()
    for name, change in (("hole", hole), ("missing", missing)):
        damaged = change(content, len(content) // 2, 600)
        (root / "train/normal_images" / f"{name}.jpg").write_bytes(damaged)
    (root / "train/normal_images" / "whole.jpg").write_bytes(content)
    config = load_config(config_file(root, data={"sample_submission": None}))
    with pytest.raises(UserError, match="2 of 12 images cannot be used") as caught:
        prepare(config)
    assert all(f"{name}.jpg" in str(caught.value) for name in ("hole", "missing"))
    assert "Corrupt JPEG data" not in capfd.readouterr().err


@pytest.mark.parametrize("examine", [examine_image, examine_mask])
def test_damage_none_searched_in_a_jpeg_2000_that_claims_gigabytes(tmp_path, examine):
    """Pillow takes what the box around the picture claims."""
    content = bytearray(encoded(PHOTO, "JPEG2000"))
    start = content.index(b"ihdr") + 4
    content[start : start + 4] = (1_000_000_000).to_bytes(4)
    assert "claims to have more pixels" in refusal(tmp_path / "x.jp2", bytes(content), examine)
