"""The white level of 16-bit images: data.bits, the same wherever an image is read."""

import json

import cv2
import numpy as np
import pytest
from conftest import write_dataset
from image_files import DEEP, DEEP_RGB, GREY, encoded, encoded_by_opencv, pnm, tiff

from defects.config import load_config
from defects.data.datasets import plain_loader
from defects.data.images import ImageFacts, examine_image, notes_on_depth, read_image
from defects.deploy.model import Meta
from defects.deploy.prediction import read_frame
from defects.deploy.similar import load_normals
from defects.evaluation.adversarial import appearance_table
from defects.messages import UserError
from defects.reports.figures import read_tile
from defects.stages import ensure_images, ensure_tables
from defects.stamps import differences
from defects.training.checkpoint import fingerprint

TWELVE = DEEP >> 4  # as a 12-bit camera gives it
PACKED = cv2.imencode(".png", TWELVE)[1].tobytes()


def three(grey):
    return np.dstack([grey] * 3)


def pack_12_bits(values):
    """uint8, two values in three bytes, as TIFF stores them."""
    pairs = values.reshape(-1, 2).astype(int)
    high, low = pairs.T
    return np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_images_read_image_makes_the_white_level_and_more_255(tmp_path, bits):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(DEEP, "PNG"))
    expected = np.minimum(DEEP / (2**bits - 1), 1) * 255
    assert np.abs(read_image(path, bits=bits) - three(expected)).max() <= 0.51


def test_images_read_image_of_12_bits_keeps_grey_levels(tmp_path):
    ramp = np.tile(np.arange(0, 4096, 16, dtype=np.uint16), (8, 1))
    (tmp_path / "x.png").write_bytes(encoded(ramp, "PNG"))
    assert len(np.unique(read_image(tmp_path / "x.png"))) < 20
    assert len(np.unique(read_image(tmp_path / "x.png", bits=12))) > 250


FILES = {  # name -> (content of more than 8 bits, its values from 0 to 1)
    "grey.png": (encoded(DEEP, "PNG"), three(DEEP / 65535)),
    "rgb.png": (encoded_by_opencv(DEEP_RGB, ".png"), DEEP_RGB / 65535),
    "rgba.png": (encoded_by_opencv(np.dstack([DEEP_RGB, DEEP]), ".png"), DEEP_RGB / 65535),
    "rgb.tif": (tiff(DEEP_RGB), DEEP_RGB / 65535),
    "rgba.tif": (tiff(np.dstack([DEEP_RGB, DEEP]), t338=2), DEEP_RGB / 65535),
    "big-endian.tif": (tiff(DEEP_RGB, order=">"), DEEP_RGB / 65535),
    "white-is-zero.tif": (tiff(DEEP, t262=0), three(1 - DEEP / 65535)),
    "twelve.tif": (tiff(pack_12_bits(TWELVE), t258=12, t277=1), three(TWELVE / 4095)),
    "twelve.pgm": (pnm(5, TWELVE, 4095), three(TWELVE / 4095)),
    "twelve-text.pgm": (pnm(2, TWELVE, 4095), three(TWELVE / 4095)),
    "sixteen.pgm": (pnm(5, DEEP, 65535), three(DEEP / 65535)),
    "ten.ppm": (pnm(6, DEEP_RGB >> 6, 1023), (DEEP_RGB >> 6) / 1023),
    "grey.jp2": (encoded(DEEP, "JPEG2000"), three(DEEP / 65535)),
}


@pytest.mark.parametrize("name", FILES)
def test_images_read_image_without_bits_takes_white_from_the_header(tmp_path, name):
    content, values = FILES[name]
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    assert np.abs(image - 255 * values).max() <= 0.51


@pytest.mark.parametrize("name", ["twelve.tif", "twelve.pgm"])
def test_images_read_image_of_a_file_that_tells_its_depth(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name][0])
    np.testing.assert_array_equal(read_image(tmp_path / name), read_image(tmp_path / name, bits=12))


@pytest.mark.parametrize("white", [1, 15, 100, 254, 255])
def test_images_read_image_of_a_pgm_with_a_small_maximum(tmp_path, white):
    values = (GREY.astype(int) % (white + 1)).astype(np.uint8)
    (tmp_path / "x.pgm").write_bytes(pnm(5, values, white))
    assert np.abs(read_image(tmp_path / "x.pgm", bits=12) - three(values / white * 255)).max() <= 0.51


def test_images_read_image_of_8_bits_ignores_bits(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(GREY, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", bits=12), three(GREY))


def facts_of_16_bits(*largest):
    return {f"{i}.png": ImageFacts(4, 4, 16, "grey", value) for i, value in enumerate(largest)}


@pytest.mark.parametrize(
    ("largest", "bits", "proposed_bits"),
    [
        ([1023, 700], None, 10),
        ([300, 200], None, 10),
        ([1024], None, 12),
        ([4095, 100], None, 12),
        ([16383], None, 14),
        ([16384, 9000], None, None),
        ([4095], 12, None),
    ],
)
def test_images_notes_on_depth_of_unused_bits(largest, bits, proposed_bits):
    notes = notes_on_depth(facts_of_16_bits(*largest) | {"8.png": ImageFacts(4, 4, 8, "grey", 255)}, bits)
    assert [f"set data.bits={proposed_bits}" in note for note in notes] == ([True] if proposed_bits else [])


def test_images_notes_on_depth_none_for_8_bits():
    assert notes_on_depth({"8.png": ImageFacts(4, 4, 8, "grey", 90)}, None) == []


def test_images_notes_on_depth_of_values_above_the_white_level():
    (note,) = notes_on_depth(facts_of_16_bits(900, 4000), 10)
    assert "data.bits=10" in note and "4,000" in note and "1.png" in note


def test_images_notes_on_depth_of_nearly_black_images():
    (note,) = notes_on_depth(facts_of_16_bits(60000, 4000, 65535), None)
    assert "1 of 3" in note and "1.png" in note


@pytest.fixture
def deep_data(tmp_path, make_config):
    """A data set of 12-bit frames, and a function that makes its configuration for some bits."""
    root = write_dataset(tmp_path / "data", defects=4, normals=8, tests=2)
    for path in [*root.glob("train/*_images/*.png"), *root.glob("test/images/*.png")]:
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        path.write_bytes(cv2.imencode(".png", grey.astype(np.uint16) * 16)[1].tobytes())

    def configured(bits):
        return make_config(root, f"data.bits={'null' if bits is None else bits}")

    return root, configured


@pytest.mark.parametrize("reader", ["loader", "tile", "appearance", "frame", "normals"])
def test_images_bits_are_used_by_every_reader(deep_data, tmp_path, reader):
    root, configured = deep_data
    bright = []
    for bits in (None, 12):
        config = configured(bits)
        rows = ensure_images(config)
        path = root / rows["path"][0]
        if reader == "loader":
            pixels = next(iter(plain_loader(config, rows)))["image"].numpy()
        elif reader == "tile":
            pixels = read_tile(config.data, rows.to_dict("records")[0])
        elif reader == "appearance":
            ensure_tables(config)
            pixels = 255 * appearance_table(config, ensure_tables(config))["brightness"].to_numpy()
        elif reader == "frame":
            pixels = read_frame(path, meta(bits)).image
        else:
            pixels = np.stack(list(load_normals(tmp_path, path.parent, meta(bits)).images.values()))
        bright.append(float(pixels.mean()))
    assert bright[0] < 0.7 * bright[1]


def meta(bits):
    values = {"bits": bits} if bits else {}  # an export from before there was a choice has no such key
    return Meta(
        version=1,
        experiment="a",
        fold="0",
        detector="a",
        checkpoint_sha256="",
        image_size=(32, 32),
        targets=["defect"],
        threshold={"defect": 0.5},
        map=None,
        files={},
        packages={},
        **values,
    )


def test_images_bits_are_the_same_in_prediction_and_training(deep_data):
    root, configured = deep_data
    config = configured(12)
    rows = ensure_images(config)
    trained_on = next(iter(plain_loader(config, rows)))["image"].numpy()
    np.testing.assert_array_equal(read_frame(root / rows["path"][0], meta(12)).image, trained_on[0])


def test_images_bits_make_tables_and_checkpoints_stale(deep_data, capsys):
    _, configured = deep_data
    before = configured(None)
    ensure_tables(before)
    saved = fingerprint(before, "0", None)
    capsys.readouterr()
    after = configured(12)
    ensure_tables(after)
    printed = capsys.readouterr().out
    assert "preparing the data first" in printed and "splitting first" in printed
    assert differences(saved, fingerprint(after, "0", None))[0] == "data.bits=null then, 12 now"
    stamp = json.loads((after.dataset_dir / "split.json").read_text())
    assert stamp["settings"]["data.bits"] == 12


@pytest.mark.parametrize("bits", [8, 17, "twelve"])
def test_images_bits_that_are_impossible_are_refused(tmp_path, config_file, bits):
    with pytest.raises(UserError, match=r"data\.bits"):
        load_config(config_file(tmp_path, data={"bits": bits}))


def test_images_examine_image_tells_the_largest_stored_value(tmp_path):
    (tmp_path / "x.png").write_bytes(PACKED)
    facts = examine_image(tmp_path / "x.png")
    assert (facts.bits, facts.largest) == (16, TWELVE.max())
    assert "set data.bits=12" in notes_on_depth({"x.png": facts}, None)[0]
