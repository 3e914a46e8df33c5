"""The generated strips: what the data set holds, and that its masks belong to what is drawn."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import make_data_config

from defects.data import rle
from defects.data.layouts import list_data, strips
from defects.data.rle import read_rle_table, table_form
from defects.messages import UserError

SIZE = (64, 400)
SMALL = {"images": 6, "test": 3, "size": (32, 96)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a data set of 240 + 40 strips, `data`, and its key, `key.csv`."""
    folder = tmp_path_factory.mktemp("strips")
    settings = strips.Settings(images=240, test=40, size=SIZE)
    strips.generate_strips(folder / "data", folder / "key.csv", settings)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _draw(classes: str, seed: int, size: tuple[int, int] = SIZE):
    return strips.draw_strip(strips.Strip("x.jpg", (seed,), classes), size)


def test_strips_same_seed_same_bytes_and_other_seed_other_images(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        settings = strips.Settings(seed=seed, **SMALL)
        strips.generate_strips(tmp_path / name / "data", tmp_path / name / "key.csv", settings)
    a, b, c = (_contents(tmp_path / name) for name in "abc")
    assert a == b
    assert not {a[name] for name in a if name.endswith(".jpg")} & set(c.values())


def test_strips_layout(folder):
    root = folder / "data"
    assert {p.name for p in folder.iterdir()} == {"data", "key.csv"}
    assert {p.name for p in root.iterdir()} == {
        "train_images",
        "train.csv",
        "test_images",
        "sample_submission.csv",
    }
    train, test = (sorted(p.name for p in (root / f"{part}_images").iterdir()) for part in ("train", "test"))
    assert (len(train), len(test), len({*train, *test})) == (240, 40, 280)
    assert table_form(root / "train.csv") == "split"
    assert (read_rle_table(root / "train.csv", strips.STRIP_CLASSES)["runs"] != "").all()
    expected = [(name, target) for name in test for target in strips.STRIP_CLASSES]
    for path in (root / "sample_submission.csv", folder / "key.csv"):
        table = read_rle_table(path, strips.STRIP_CLASSES)
        assert table_form(path) == "joined"
        assert list(zip(table["image_id"], table["target"], strict=True)) == expected
    image = _read(root / "train_images" / train[0])
    assert image.shape == (*SIZE, 3)
    assert (np.ptp(image, axis=2) == 0).all()


def test_strips_shares_of_the_classes_are_the_measured_ones(folder):
    table = read_rle_table(folder / "data/train.csv", strips.STRIP_CLASSES)
    measured = pd.Series({"1": 897, "2": 247, "3": 5150, "4": 801}) / 12_568 * 240
    assert (table["target"].value_counts() - measured).abs().max() < 2.5
    assert abs(table["image_id"].nunique() - 6_666 / 12_568 * 240) < 2.5
    assert (table["image_id"].value_counts() > 1).sum() >= 5


@pytest.mark.parametrize("name", strips.STRIP_CLASSES)
def test_strips_a_mask_lies_on_the_defect_that_is_drawn(name):
    """The defect is drawn last, from the same generator: the clean strip of the same key lies below it."""
    for seed in range(12):
        plain, nothing = _draw("", seed)
        image, masks = _draw(name, seed)
        mask = masks[name] > 0
        steel = plain >= strips.DARKEST
        change = np.abs(image.astype(int) - plain)
        assert nothing == {}
        assert set(masks) == {name}
        assert change[mask].mean() > 8
        assert change[(cv2.dilate(masks[name], np.ones((9, 9))) == 0) & steel].max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (48, 300), (256, 1600)])
def test_strips_masks_hold_pixels_do_not_meet_and_keep_off_the_black_border(size):
    borders = 0
    for seed in range(30 if size[0] < 256 else 10):
        image, masks = _draw("1234", seed, size)
        black = image < strips.DARKEST
        borders += black.any()
        assert set(masks) == set(strips.STRIP_CLASSES)
        assert all(mask.any() for mask in masks.values())
        total = sum(masks.values())
        assert total.max() == 1
        assert not total[black].any()
    assert borders > 0


def test_strips_a_black_border_is_one_end_of_every_row():
    share = []
    for seed in range(60):
        black = _draw("", seed)[0] < strips.DARKEST
        edges = (np.diff(black.astype(int), axis=1) != 0).sum(axis=1)
        assert set(edges) in ({0}, {1})
        share.append(black.mean())
    assert 0.05 < np.mean(np.array(share) > 0) < 0.4
    assert max(share) < 0.65


def test_strips_pairs_of_duplicates(folder):
    """Byte for byte; under another time stamp; under another time stamp and with the defects overlooked."""
    root, pairs = folder / "data/train_images", {}
    plan = strips.plan_strips(0, sorted(p.name for p in root.iterdir()), 0)
    for strip in plan:
        pairs.setdefault(strip.key, []).append(strip)
    pairs = [pair for pair in pairs.values() if len(pair) == 2]
    assert len(pairs) == 3
    for (first, second), stamped, marked in zip(pairs, (False, True, True), (True, True, False), strict=True):
        (a, masks), (b, others) = (strips.draw_strip(strip, SIZE) for strip in (first, second))
        assert first.name != second.name
        assert np.array_equal(a, b) != stamped
        assert np.array_equal(a[SIZE[0] // 8 :], b[SIZE[0] // 8 :])
        assert masks
        assert bool(others) == marked


def test_strips_the_files_show_what_the_table_marks(folder):
    table = read_rle_table(folder / "data/train.csv", strips.STRIP_CLASSES)
    for row in table[table["target"].isin(["1", "2"])].itertuples():  # these two are always dark
        image = _read(folder / "data/train_images" / row.image_id)[..., 0]
        mask = rle.decode(row.runs, SIZE)
        around = cv2.dilate(mask, np.ones((9, 9))) - mask
        assert image[mask > 0].mean() < image[around > 0].mean() - 3


def test_strips_the_source_generates_once(tmp_path, monkeypatch, capsys):
    data = partial(
        make_data_config, name="set", source="strips", root=tmp_path / "strips", image_size=(32, 96)
    )
    with pytest.raises(UserError, match=r"data\.answers"):
        list_data(data(classes=strips.STRIP_CLASSES))
    data = data(classes=strips.STRIP_CLASSES, answers=tmp_path / "key.csv", strips={**SMALL, "seed": 1})
    first = list_data(data)
    assert "generating the strips" in capsys.readouterr().out
    assert first.images["split"].value_counts().to_dict() == {"train": 6, "test": 3}
    monkeypatch.setattr(strips, "generate_strips", None)
    assert list_data(data).images.equals(first.images)
