"""Black-out: which images are covered, that nothing of a covered defect is left, what becomes of labels."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import defective, texture, write_png

from defects.data import rle
from defects.data.black_out import BlackOut
from defects.data.datasets import ImageDataset, training_loader
from defects.data.fold_files import load_training_rows
from defects.data.images import covered
from defects.data.labels import Labels
from defects.messages import UserError
from defects.stages import ensure_tables

SIDE = 96
ROWS = {"marked": 8, "normal": 8, "unmarked": 4}
CLASSES = Labels(("1", "2", "defect"), masks=True)


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    """Rows of images.csv: white squares of two classes, normal ones, white squares that nobody marked.

    The textures are faint, below grey level 170. Every third file is a JPEG in spite of its name.
    """
    rows = []
    for kind, count in ROWS.items():
        for i in range(count):
            mask = defective(i, SIDE)[1]
            image = (96 + texture(i, SIDE) // 4).astype(np.uint8)
            image[(mask > 0) & (kind != "normal")] = 255
            path = write_png(tmp_path / kind / f"{i}.png", image)
            if i % 3 == 0:
                path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
            runs = ["", rle.encode(mask)] if i % 2 else [rle.encode(mask), ""]
            runs = runs if kind == "marked" else ["", ""]
            rows.append((f"{kind}/{i}.png", int(kind != "normal"), "", SIDE, SIDE, kind, *runs))
    columns = ["path", "label", "mask_path", "width", "height", "kind", "defect_1", "defect_2"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def build(table, tmp_path):
    """build(probability, size, seed) -> the data set of `table`; probability None leaves black-out away."""

    def make(probability=1.0, size=(32, 32), seed=0, labels=CLASSES):
        black_out = probability and BlackOut(table, tmp_path, size, probability, seed)
        return ImageDataset(table, tmp_path, size, [], 0, labels, black_out or None)

    return make


def have_same_image(sample, second):
    return torch.equal(sample["image"], second["image"])


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (96, 96), (120, 120), (11, 7)])
def test_black_out_covers_all_of_a_defect(build, size):
    plain = build(None, size)
    hidden = build(1.0, size)
    for row in range(ROWS["marked"]):
        assert plain[0, row]["image"].max() > 220
        assert hidden[0, row]["image"].max() < 170


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_black_out_of_a_jpeg_decoded_at_half_its_size(build, table, tmp_path, size):
    for row in range(ROWS["marked"]):
        mask = defective(row, SIDE)[1]
        image = np.where(mask > 0, 255, 128).astype(np.uint8)
        (tmp_path / table["path"][row]).write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    for row in range(ROWS["marked"]):
        assert (build(None, size)[0, row]["image"].int() - 128).abs().max() > 100
        assert (build(1.0, size)[0, row]["image"].int() - 128).abs().max() <= 4


def test_black_out_gives_labels_and_masks_of_a_normal_image(build):
    plain = build(None)
    hidden = build(1.0)
    for row in range(ROWS["marked"]):
        assert plain[0, row]["label"].sum() == 2 and plain[0, row]["mask"].any()
        assert hidden[0, row]["label"].tolist() == [0, 0, 0]
        assert not hidden[0, row]["mask"].any() and hidden[0, row]["masked"] == 1
    assert build(1.0, labels=Labels())[0, 0]["label"].tolist() == [0]


def test_black_out_ignores_unmarked_defects(build):
    plain = build(None)
    hidden = build(1.0)
    for row in range(ROWS["marked"] + ROWS["normal"], sum(ROWS.values())):
        assert have_same_image(plain[0, row], hidden[0, row])
        assert torch.equal(plain[0, row]["label"], hidden[0, row]["label"])


def test_black_out_gives_normal_images_the_shapes_of_defects(build, table, tmp_path):
    plain = build(None)
    hidden = build(1.0)
    shapes = [hidden.black_out.cover(0, row) for row in range(ROWS["marked"])]
    covered_shapes = set()
    for row in range(ROWS["marked"], ROWS["marked"] + ROWS["normal"]):
        for epoch in range(4):
            cover = hidden.black_out.cover(epoch, row)
            (number,) = [i for i, shape in enumerate(shapes) if np.array_equal(shape, cover)]
            covered_shapes.add(number)
            before = plain[epoch, row]["image"]
            after = hidden[epoch, row]["image"]
            assert (after[cover] == after[cover][0]).all() and torch.equal(before[~cover], after[~cover])
        assert hidden[0, row]["label"].sum() == 0
    assert len(covered_shapes) > ROWS["marked"] / 2


def test_black_out_is_as_frequent_in_both_classes(build):
    epochs = 100
    marked = range(ROWS["marked"])
    normal = range(ROWS["marked"], ROWS["marked"] + ROWS["normal"])
    black_out = build(0.3).black_out
    hidden = [black_out.hides(epoch, row) for epoch in range(epochs) for row in marked]
    stray = [
        black_out.cover(epoch, row) is not None
        for epoch in range(epochs)
        for row in marked
        if not black_out.hides(epoch, row)
    ]
    clean = [black_out.cover(epoch, row) is not None for epoch in range(epochs) for row in normal]
    assert np.allclose([np.mean(hidden), np.mean(stray), np.mean(clean)], 0.3, atol=0.05)


def test_black_out_covers_no_part_of_other_defects(build):
    plain = build(None)
    dataset = build(0.5)
    items = [
        (epoch, row) for epoch in range(6) for row in range(8) if not dataset.black_out.hides(epoch, row)
    ]
    changed = 0
    for item in items:
        before = plain[item]
        after = dataset[item]
        inside = before["mask"].bool().any(dim=2)
        assert torch.equal(before["image"][inside], after["image"][inside])
        assert torch.equal(before["label"], after["label"]) and torch.equal(before["mask"], after["mask"])
        changed += not have_same_image(before, after)
    assert 0 < changed < len(items)


def test_black_out_depends_on_seed_epoch_and_row_alone(build):
    dataset = build(0.5)
    again = build(0.5)
    other_seed = build(0.5, seed=1)
    items = [(epoch, row) for epoch in range(3) for row in range(16)]
    batch = again.__getitems__(items[::-1])[::-1]
    assert all(have_same_image(dataset[item], sample) for item, sample in zip(items, batch, strict=True))
    assert not all(have_same_image(dataset[item], other_seed[item]) for item in items)
    assert not all(have_same_image(dataset[0, row], dataset[1, row]) for row in range(16))


def test_covered_has_the_mean_colour_of_visible_pixels():
    image = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    image[:2] = 255
    image[3, 3] = (26, 20, 30)
    cover = np.zeros((4, 4), bool)
    cover[:2] = True
    assert (covered(image, cover)[:2] == (12, 20, 30)).all() and image[0, 0, 0] == 255
    assert not covered(image, np.ones((4, 4), bool)).any()


def test_black_out_refuses_rows_without_marked_defects(table, tmp_path):
    with pytest.raises(UserError, match=r"train\.black_out=0\.5 covers marked defects"):
        BlackOut(table[table["kind"] != "marked"], tmp_path, (32, 32), 0.5, 0)


def test_black_out_by_mask_files_before_rotation(make_dataset, make_config):
    """In the defect/normal layout: squares are the only white pixels, each image is learnt from in turns."""
    labels = []
    config = make_config(
        make_dataset(), "train.black_out=0.5", "split.balance.ratio=2", "data.symmetries=dihedral"
    )
    table = ensure_tables(config).folds  # which writes the list, too
    rows = load_training_rows(config, "0").merge(table, on="image_id")
    for batch in training_loader(config, rows, Labels(masks=True)):
        white = (batch["image"] == 255).all(3)
        assert torch.equal(white.amax((1, 2)).float(), batch["label"][:, 0])
        assert torch.equal(white, batch["mask"][..., 0] == 1) and batch["masked"].all()
        labels += batch["label"][rows["label"][batch["row"].tolist()].to_numpy() == 1, 0].tolist()
    assert rows["angle"].nunique() > 1 and np.mean(labels) == pytest.approx(0.5, abs=0.2)


def test_black_out_is_a_setting_of_training(make_dataset, make_config, config_file, run_script):
    """Of the training loader alone."""
    root = make_dataset()
    config = make_config(root, "train.black_out=1")
    (batch,) = list(training_loader(config.model_copy(), ensure_tables(config).folds))[:1]
    assert batch["label"].sum() == 0
    path = config_file(root, train={"epochs": 1, "black_out": 0.5})
    outcome = run_script("train.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    folder = path.parent / "output" / "tiny" / "fold0"
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "val_auroc" in row  # both classes are still there
    assert pd.read_csv(folder / "oof.csv")["label"].sum() == 6
