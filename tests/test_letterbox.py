"""Letterbox: images of any shape in one frame, with their masks, and maps that lie on the image again."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import texture, write_png
from PIL import Image
from torch.nn import functional

from defects.config import Config
from defects.data.datasets import ImageDataset, training_loader
from defects.data.decoding import REDUCED
from defects.data.images import content_box, into_frame, read_image, resize, resize_mask
from defects.data.labels import Labels
from defects.data.prepare import load_images
from defects.data.split import load_folds
from defects.models import Detector
from defects.scoring.pixels import Maps, masked_maps, pixel_metrics
from defects.training.run import score_table

SHAPES = [(64, 64), (40, 90), (90, 40), (9, 13), (300, 500), (500, 70), (8, 400), (400, 3), (1, 50), (1, 1)]
SIZES = [(64, 64), (48, 96), (33, 47)]
FITS = ("squash", "letterbox")
BLOBS = {"wide": (60, 180), "tall": (230, 70), "small": (20, 28), "large": (400, 330), "strip": (24, 300)}


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)


# --- frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_image_keeps_its_shape_in_the_middle_and_is_reflected_around(shape, size):
    image, box = picture(*shape), content_box(shape, size, "letterbox")
    assert box.height == size[0] or box.width == size[1]
    factors = box.height / shape[0], box.width / shape[1]
    assert max(box[2:]) == 1 or abs(factors[0] - factors[1]) * min(shape) <= 1  # a rounded pixel
    borders = [(box.top, size[0] - box.top - box.height), (box.left, size[1] - box.left - box.width)]
    assert all(0 <= second - first <= 1 for first, second in borders)
    inner = resize(image, box[2:])
    frame = into_frame(image, size, "letterbox")
    assert np.array_equal(frame, np.pad(inner, [*borders, (0, 0)], mode="reflect"))
    assert frame.min() >= 60


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_fills_the_frame(shape):
    assert content_box(shape, (33, 47), "squash") == (0, 0, 33, 47)
    assert np.array_equal(into_frame(picture(*shape), (33, 47), "squash"), resize(picture(*shape), (33, 47)))


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (300, 500)])
def test_an_image_that_was_letterboxed_before_stays_as_it_is(tmp_path, shape):
    path = write_png(tmp_path / "image.png", picture(*shape))
    frame = read_image(path, (48, 96), "letterbox")
    assert np.array_equal(read_image(write_png(path, frame), (48, 96), "letterbox"), frame)


# Half of 449 x 111 pixels is 225 x 56, of which 224 x 56 would be left, instead of 224 x 55.
@pytest.mark.parametrize("shape", [(449, 111), (111, 449), (449, 133), (1198, 1189), (2047, 901), (130, 90)])
def test_a_jpeg_decoded_at_a_fraction_lies_where_its_mask_does(tmp_path, shape):
    image, mask = resize(texture(0, 16), shape), np.zeros(shape, np.uint8)
    mask[shape[0] // 5 : shape[0] // 2, shape[1] // 2 : shape[1] * 9 // 10] = 255
    found = read_jpeg(tmp_path, np.where(mask > 0, 255, image), (224, 224))
    known = resize_mask(mask > 0, (224, 224), "letterbox").astype(np.uint8)
    inside, around = (morph(known, np.ones((3, 3))) > 0 for morph in (cv2.erode, cv2.dilate))
    assert inside.any() and found[inside].min() > 180
    plain = into_frame(image, (224, 224), "letterbox").astype(int)
    assert np.abs(found - plain)[~around].mean() < 1


def read_jpeg(folder, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    path = folder / "image.jpg"
    path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes())
    return read_image(path, size, "letterbox")[..., 0]


@pytest.mark.parametrize(
    ("shape", "factor"),
    [((1800, 250), 8), ((250, 1800), 8), ((1600, 1600), 4), ((500, 9), 2), ((440, 440), 1)],
)
def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch, shape, factor):
    modes, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, mode: modes.append(mode) or decode(content, mode))
    assert read_jpeg(tmp_path, picture(*shape), (224, 224)).shape == (224, 224)
    assert modes == [cv2.IMREAD_COLOR_RGB if factor == 1 else REDUCED[factor]]


@pytest.mark.parametrize("shape", [(1001, 333), (333, 1001), (80, 30)])
def test_turned_by_its_header(tmp_path, shape):
    image = resize(texture(0, 16), shape)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    found = read_image(tmp_path / "turned.jpg", (64, 96), "letterbox")[..., 0]
    expected = into_frame(np.rot90(image, -1), (64, 96), "letterbox")
    assert np.abs(found.astype(int) - expected).mean() < 2


# --- data sets -------------------------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path) -> pd.DataFrame:
    """Rows of images.csv: faint textures of several shapes, each with a bright disc near its lower right."""
    rows = []
    for number, (name, (height, width)) in enumerate(BLOBS.items()):
        mask = np.zeros((height, width), np.uint8)
        centre, radius = (width * 4 // 5, height * 2 // 3), min(height, width) // 5
        cv2.circle(mask, centre, radius, 255, -1)
        image = (40 + texture(number, max(height, width))[:height, :width] // 4).astype(np.uint8)
        image[mask > 0] = 255
        write_png(tmp_path / f"{name}.png", image)
        write_png(tmp_path / f"{name}_mask.png", mask)
        rows.append((name, f"{name}.png", 1, f"{name}_mask.png", height, width, *centre))
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "mask_path", "height", "width", "x", "y"])


@pytest.mark.parametrize("size", SIZES)
def test_what_is_seen_as_a_defect_is_labelled_as_one(blobs, tmp_path, size):
    dataset = ImageDataset(blobs, tmp_path, size, [], 0, Labels(masks=True), fit="letterbox")
    for row in range(len(blobs)):
        image, mask = dataset[row]["image"].numpy(), dataset[row]["mask"].numpy() > 0
        assert mask[image[..., :1] > 200].all() and image[~mask[..., 0]].max() < 110
        assert image.min() >= 40


class Brightness(Detector):
    """The map is the image at a quarter of its size; the score its maximum."""

    def forward(self, images):
        maps = functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        return maps.amax((2, 3)), maps


@pytest.mark.parametrize(
    "sets",
    [
        ("data.image_size=[128, 128]", "infer.tta=false"),
        ("data.image_size=[128, 128]", "data.symmetries=dihedral"),
        ("data.image_size=[96, 192]", "data.symmetries=flips", "infer.map_size=32"),
        ("data.image_size=[160, 120]", "infer.tta=false", "infer.window=[64, 64]"),
    ],
)
def test_maps_cover_the_image_and_not_its_frame(make_config, blobs, tmp_path, sets):
    config: Config = make_config(tmp_path, "data.fit=letterbox", *sets)
    path = tmp_path / "maps.npz"
    table = score_table(Brightness(), config, blobs, "0", Accelerator(cpu=True), path)
    assert (table["score"] > 0.45).all()  # the textures are below
    maps = Maps(path)
    for row in blobs.itertuples():
        values = resize(maps[row.image_id].astype(np.float32), (row.height, row.width))
        y, x = (axis.mean() for axis in np.nonzero(values > 0.9 * values.max()))
        cell = 4 * max(row.height / 96, row.width / 96, 1)  # pixels, at the least; half of it is allowed
        assert abs(y - row.y) <= cell / 2 and abs(x - row.x) <= cell / 2
    found = pixel_metrics(masked_maps(blobs, maps, tmp_path))
    assert found["pixel_auroc"] > 0.98


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_from_training_to_submission(make_dataset, config_file, run_script, fails_with_one_line):
    """Black-out and planned rotations on letterboxed images of three shapes."""
    root = make_dataset(defects=6, normals=12, tests=3)
    for path in root.rglob("*_1.png"):
        write_png(path, np.tile(read_image(path), (1, 2, 1)))
    path = config_file(root, data={"fit": "letterbox"}, train={"epochs": 1, "black_out": 0.5})
    assert run_script("train.py", "--config", path).code == 0
    assert run_script("infer.py", "--config", path).code == 0
    message = fails_with_one_line("infer.py", "--config", path, "--set", "data.fit=squash")
    assert "belongs to another config" in message and "(data.fit=letterbox then, squash now)" in message
    assert "data.fit=stretch" in fails_with_one_line(
        "train.py", "--config", path, "--set", "data.fit=stretch"
    )


def test_it_is_a_setting_of_training_too(make_dataset, make_config, capsys):
    """Read at training as at inference, and nothing is prepared again for it."""
    root = make_dataset(defects=6, normals=12, tests=3, size=48)
    for path in root.rglob("*_1.png"):
        write_png(path, np.tile(read_image(path), (1, 3, 1)))
    squashed, boxed = (make_config(root, f"data.fit={fit}", "split.balance.method=none") for fit in FITS)
    rows = load_folds(squashed).query("image_id.str.contains('_1.png')").reset_index(drop=True)
    capsys.readouterr()
    load_images(boxed)
    assert "preparing" not in capsys.readouterr().out
    for config in (squashed, boxed):
        (batch,) = training_loader(config, rows)
        for image, row in zip(batch["image"], batch["row"].tolist(), strict=True):
            expected = read_image(root / rows["path"][row], (32, 32), config.data.fit)
            assert torch.equal(image, torch.from_numpy(expected))
