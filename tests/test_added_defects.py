"""Pasted and drawn defects: where they come from and go to, that nothing else changes, labels and masks."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import data_in, defective, texture, write_png
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.data.added_defects import (
    FEATHER,
    SCALES,
    Paste,
    Synthetic,
    blend_patch,
    draw_defect,
    place_piece,
)
from defects.data.datasets import ImageDataset, training_loader
from defects.data.fold_files import load_training_rows
from defects.data.labels import Labels
from defects.data.rle import encode
from defects.data.roi import load_roi
from defects.messages import UserError
from defects.stages import ensure_tables

SIDE = 64
ROWS = {"marked": 6, "normal": 10, "unmarked": 3}
CLASSES = Labels(("1", "2", "defect"), masks=True)
NORMAL = range(ROWS["marked"], ROWS["marked"] + ROWS["normal"])
SYMMETRIES = ["rotations", "dihedral", "flips", "none"]


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    """Rows of images.csv: white squares of two classes, normal ones, white squares that nobody marked.

    The textures are faint, below grey level 170. A defect weighs 3.
    """
    rows = []
    for kind, count in ROWS.items():
        for i in range(count):
            mask = defective(i, SIDE)[1]
            image = (96 + texture(len(rows), SIDE) // 4).astype(np.uint8)
            image[(mask > 0) & (kind != "normal")] = 255
            write_png(tmp_path / kind / f"{i}.png", image)
            runs = ["", encode(mask)] if i % 2 else [encode(mask), ""]
            one, two = runs if kind == "marked" else ("", "")
            label = int(kind != "normal")
            rows.append((f"{kind}/{i}.png", label, "", SIDE, SIDE, kind, one, two))
    columns = ["path", "label", "mask_path", "width", "height", "kind", "defect_1", "defect_2"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def build(table, tmp_path):
    """build(probability, symmetries, size, seed, labels) -> the data set of `table`; 0 leaves paste away."""

    def make(probability=0.5, symmetries="dihedral", size=(SIDE, SIDE), seed=0, labels=CLASSES):
        arguments = (table, tmp_path, size, probability, symmetries, labels, seed)
        pasting = [Paste(*arguments)] if probability else []
        return ImageDataset(table, tmp_path, size, [], 0, labels, None, pasting)

    return make


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in ("image", "label", "mask"))


def normal_items(epochs=6):
    return [(epoch, row) for epoch in range(epochs) for row in NORMAL]


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (100, 80)])
@pytest.mark.parametrize("symmetries", ["rotations", "none"])
def test_added_defects_a_pasted_defect_is_in_its_mask_and_nothing_changes_beyond_its_rim(
    build, symmetries, size
):
    plain, dataset = build(0, size=size), build(0.5, symmetries, size)
    rim = np.ones((2 * FEATHER + 1, 2 * FEATHER + 1), np.uint8)
    found = 0
    for item in normal_items(3):
        before, after = plain[item], dataset[item]
        if not after["label"][-1]:
            continue
        mask = after["mask"].amax(2).numpy()
        changed = (before["image"] != after["image"]).any(2).numpy()
        assert not (changed & ~(cv2.dilate(mask, rim) > 0)).any()
        white = (after["image"] > 190).all(2).numpy()
        assert white.any() and not (white & ~(cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0)).any()
        assert 0.3 < white.sum() / (size[0] * size[1] / 16) < 3
        found += 1
    assert found > 5


def test_added_defects_labels_and_masks_are_those_of_the_pasted_class(build):
    dataset, seen = build(), set()
    for item in normal_items():
        pasted = dataset.painters[0](*item, texture(0, SIDE)[..., None].repeat(3, axis=2))
        sample = dataset[item]
        classes = sample["mask"].amax((0, 1)).tolist()
        assert sample["label"].tolist() == [*classes, max(classes)] and sample["masked"] == 1
        if pasted:
            assert classes == pasted.mask.any(axis=(0, 1)).tolist()
        assert bool(pasted) == bool(max(classes))
        seen.add(tuple(classes))
    assert seen == {(0, 0), (0, 1), (1, 0)}
    binary = build(labels=Labels())
    assert {tuple(binary[item]["label"].tolist()) for item in normal_items(2)} == {(0,), (1,)}


def test_added_defects_only_normal_images_change(build, table):
    plain, dataset = build(0), build()
    others = [row for row in range(len(table)) if row not in NORMAL]
    assert all(same(plain[epoch, row], dataset[epoch, row]) for epoch in range(3) for row in others)
    changed = [not same(plain[item], dataset[item]) for item in normal_items(2)]
    assert changed == [bool(dataset[item]["label"][-1]) for item in normal_items(2)] and any(changed)


@pytest.mark.parametrize("probability", [0.15, 0.5])
def test_added_defects_a_normal_image_gets_a_defect_as_often_as_told(build, probability):
    dataset, image = build(probability), np.full((SIDE, SIDE, 3), 128, np.uint8)
    pasted = [dataset.painters[0](*item, image) is not None for item in normal_items(40)]
    assert np.mean(pasted) == pytest.approx(probability, abs=0.06)


@pytest.mark.parametrize("kind", ["paste", "synthetic"])
def test_added_defects_come_to_lie_in_the_region_of_interest(table, tmp_path, kind):
    """As often as told, however small it is."""
    roi = load_roi(data_in(tmp_path, roi={"rectangle": [0.5, 0.5, 1, 1]}, image_size=[SIDE, SIDE]))
    for row in range(ROWS["marked"]):  # all marked in the region
        table.loc[row, ["defect_1", "defect_2"]] = [encode(square_at(40)), ""]
    labels = Labels(("defect",), masks=True)
    if kind == "paste":
        painter = Paste(table, tmp_path, (SIDE, SIDE), 1.0, "dihedral", labels, 0, roi=roi)
    else:
        painter = Synthetic(table, 1.0, 0)
    dataset = ImageDataset(table, tmp_path, (SIDE, SIDE), [], 0, labels, None, [painter], roi=roi)
    added = [dataset[(epoch, row)] for epoch in range(6) for row in NORMAL]
    marked = [sample["mask"].sum().item() for sample in added]
    assert np.mean(np.array(marked) > 0) > 0.9
    assert all(sample["label"].item() == 1 for sample, area in zip(added, marked, strict=True) if area)
    for sample in added:
        assert not sample["mask"][: SIDE // 2].any() and not sample["mask"][:, : SIDE // 2].any()


def square_at(start: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[start : start + 10, start : start + 10] = 255
    return mask


def test_added_defects_an_item_depends_on_seed_epoch_and_row_alone(build):
    one, again, other = build(0.3), build(0.3), build(0.3, seed=1)
    items = normal_items(3)
    batch = again.__getitems__(items[::-1])[::-1]
    assert all(same(one[item], sample) for item, sample in zip(items, batch, strict=True))
    assert not all(same(one[item], other[item]) for item in items)
    assert not all(same(one[0, row], one[1, row]) for row in NORMAL)


def boxed(rows, columns, size=(40, 60)):
    piece = np.zeros(size, np.uint8)
    piece[rows, columns] = 1
    return piece


def placed(piece, symmetries, count=200):
    """Of `count` places: the matrix, its scale, its turn [2, 2], the piece's first and last pixel (x, y)."""
    random = np.random.default_rng(0)
    for _ in range(count):
        matrix = place_piece(piece, symmetries, random, piece.shape)
        scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
        points = np.argwhere(piece)[:, ::-1] @ matrix[:, :2].T + matrix[:, 2]
        yield scale, matrix[:, :2] / scale, points.min(axis=0), points.max(axis=0)


@pytest.mark.parametrize("symmetries", SYMMETRIES)
@pytest.mark.parametrize("piece", [boxed(slice(9, 14), slice(20, 40)), boxed(slice(5, 39), slice(3, 58))])
def test_added_defects_pieces_stay_whole_and_turn_as_the_symmetries_allow(symmetries, piece):
    last, turns, scales, places = np.array(piece.shape[::-1]) - 1, set(), [], set()
    for scale, turn, low, high in placed(piece, symmetries):
        assert (low >= -1e-3).all() and (high <= last + 1e-3).all()
        turns.add(tuple(np.rint(1000 * turn).astype(int).ravel()))
        scales.append(scale)
        places.add(tuple(np.rint(low)))
    assert max(scales) < SCALES[1] + 1e-6 and len(places) > 5
    assert np.ptp(scales) > 0.1
    allowed = {
        "none": {(1000, 0, 0, 1000)},
        "flips": {(a, 0, 0, b) for a in (-1000, 1000) for b in (-1000, 1000)},
    }
    if symmetries == "rotations":
        assert len(turns) > 150
    else:
        quarter = {(0, b, a, 0) for a, _, _, b in allowed["flips"]}
        assert turns == allowed.get(symmetries, allowed["flips"] | quarter)


@pytest.mark.parametrize("symmetries", SYMMETRIES)
@pytest.mark.parametrize(
    ("piece", "borders"),
    [
        (boxed(slice(0, 6), slice(20, 30)), 1),
        (boxed(slice(12, 20), slice(55, 60)), 1),
        (boxed(slice(30, 40), slice(0, 9)), 2),
    ],
)
def test_added_defects_what_lies_at_a_border_stays_at_one(piece, borders, symmetries):
    last = np.array(piece.shape[::-1]) - 1
    for _, turn, low, high in placed(piece, symmetries, 60):
        assert (low < 1).sum() + (high > last - 1).sum() >= borders
        assert np.allclose(turn, np.rint(turn), atol=1e-6)
        if symmetries == "none":
            assert ((low < 1) >= (np.argwhere(piece)[:, ::-1].min(axis=0) == 0)).all()


@pytest.mark.parametrize("symmetries", SYMMETRIES)
def test_added_defects_what_reaches_from_border_to_border_still_does(symmetries):
    for scale, _, low, high in placed(boxed(slice(8, 15), slice(0, 60)), symmetries, 40):
        assert scale == pytest.approx(1) and np.allclose([low[0], high[0]], [0, 59])


def test_added_defects_a_piece_is_one_of_several_defects(table, tmp_path):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:8, 4:8], mask[40:60, 40:60] = 1, 1
    rows = table.assign(defect_1=np.where(table["defect_1"] != "", encode(mask), ""), defect_2="")
    pasting = Paste(rows, tmp_path, (SIDE, SIDE), 0.5, "none", CLASSES, 0)
    areas = []
    for item in normal_items():
        pasted = pasting(*item, np.full((SIDE, SIDE, 3), 128, np.uint8))
        if pasted:
            found = pasted.mask.any(axis=2)
            assert cv2.connectedComponents(found.astype(np.uint8))[0] == 2
            areas.append(found.sum())
    assert np.median(areas) > 150 and len(areas) > 10  # drawn by area: 16 pixels to 400


@pytest.mark.parametrize(
    ("surface", "around", "inside", "expected"), [(200, 100, 50, 100), (60, 120, 200, 100)]
)
def test_added_defects_a_patch_gets_the_lighting_of_its_place(surface, around, inside, expected):
    image, patch = (np.full((40, 40, 3), value, np.uint8) for value in (surface, around))
    mask = np.zeros((40, 40), bool)
    mask[15:25, 10:20] = True
    patch[mask] = inside
    mixed = blend_patch(image, patch, mask)
    assert (mixed[mask] == expected).all() and (mixed[~mask] == surface).all()


def test_added_defects_a_rim_fades_and_a_whole_image_is_taken_as_it_is():
    image = np.full((30, 30, 3), 100, np.uint8)
    patch, mask = image.copy(), np.zeros((30, 30), bool)
    patch[14:16, 10:20], mask[15, 15] = 160, True
    mixed = blend_patch(image, patch, mask)[14:16, 15:20, 0].astype(int)
    assert mixed[1, 0] == 160 and (np.diff(mixed[1]) < 0).all() and mixed[1, 4] == 100
    for whole in (patch, patch // 2):
        assert (blend_patch(image, whole, np.ones((30, 30), bool)) == whole).all()


def test_added_defects_without_marked_defects_it_is_refused(table, tmp_path):
    rows = table[table["kind"] != "marked"]
    with pytest.raises(UserError, match="train.paste=0.5 .*have no marked defect: set it to 0"):
        Paste(rows, tmp_path, (32, 32), 0.5, "none", CLASSES, 0)


def test_added_defects_training_without_masks_goes_on_without_pasting(make_dataset, config_file, run_script):
    """One configuration serves data with and without masks."""
    root = make_dataset(tests=0)
    shutil.rmtree(root / "train" / "defect_masks")
    path = config_file(root, data={"sample_submission": None}, train={"paste": 0.5, "synthetic": 0.2})
    outcome = run_script("train.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    assert "note: train.paste=0.5 pastes marked defects, and none of the training images" in outcome.stdout


# --- the defect/normal layout, with mask files ------------------------------------------------------------


def test_added_defects_nothing_is_taken_from_images_that_are_not_learnt_from(make_dataset, make_config):
    """They may be gone from the disk."""
    root = make_dataset()
    config = make_config(root, "train.paste=0.5", "split.balance.ratio=0.1")
    table = ensure_tables(config).folds
    rows = load_training_rows(config, "0").merge(table, on="image_id")
    for row in table[~table["image_id"].isin(rows["image_id"])].itertuples():
        for path in filter(None, (row.path, row.mask_path)):
            (root / path).unlink()
    loader, labels = training_loader(config, rows, Labels(masks=True)), []
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert torch.equal(batch["mask"].amax((1, 2)).float(), batch["label"])
            labels += batch["label"][:, 0].tolist()
    assert np.mean(labels) > rows["label"].mean() + 0.2


def test_added_defects_worker_processes_change_nothing(make_dataset, make_config):
    root, batches = make_dataset(), []
    for workers in (0, 2):
        settings = ["train.paste=0.3", "train.black_out=0.3"]
        config = make_config(root, *settings, f"train.workers={workers}")
        batches.append(list(training_loader(config, ensure_tables(config).folds, Labels(masks=True))))
    for one, other in zip(*batches, strict=True):
        assert same(one, other)


def test_added_defects_it_is_a_setting_of_training(
    make_dataset, config_file, run_script, fails_with_one_line
):
    root = make_dataset()
    path = config_file(root, train={"epochs": 1, "paste": 0.3})
    outcome = run_script("train.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    folder = path.parent / "output" / "tiny" / "fold0"
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "val_auroc" in row and pd.read_csv(folder / "oof.csv")["label"].sum() == 6
    message = fails_with_one_line("train.py", "--config", path, "--set", "train.paste=1.5")
    assert "train.paste=1.5" in message and "less than or equal to 1" in message


# --- drawn defects ---------------------------------------------------------------------------------------


def image(seed=0, height=SIDE, width=SIDE):
    side = max(height, width)
    return np.repeat(texture(seed, side)[:height, :width, None], 3, axis=2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 90), width=st.integers(16, 90))
def test_added_defects_a_drawn_defect_is_seen_where_its_mask_is(seed, height, width):
    before = image(1, height, width)
    after, mask = draw_defect(before, np.random.default_rng(seed))
    assert (
        after.dtype == mask.dtype == np.uint8
        and after.shape == before.shape
        and mask.shape == (height, width)
    )
    assert 0 < mask.sum() < mask.size
    change = np.abs(after.astype(int) - before).mean(axis=2)
    assert change[mask > 0].mean() > 4 * change[mask == 0].mean()


def test_added_defects_drawn_defects_are_of_many_sizes_darker_and_brighter():
    found = [draw_defect(image(2, 128, 128), np.random.default_rng(seed)) for seed in range(200)]
    areas = np.array([mask.mean() for _, mask in found])
    assert np.quantile(areas, 0.05) < 0.005 and np.quantile(areas, 0.95) > 0.1
    shift = [(after.astype(int) - image(2, 128, 128))[mask > 0].mean() for after, mask in found]
    assert 0.3 < np.mean(np.array(shift) > 0) < 0.7


def test_added_defects_only_normal_images_get_a_drawn_defect_and_as_often_as_set():
    rows = pd.DataFrame({"label": [0, 1] * 50})
    paint = Synthetic(rows, 0.3, seed=0)
    made = {row: [paint(epoch, row, image()) for epoch in range(10)] for row in range(100)}
    assert all(each is None for row in range(1, 100, 2) for each in made[row])
    found = [each for row in range(0, 100, 2) for each in made[row]]
    assert np.mean([each is not None for each in found]) == pytest.approx(0.3, abs=0.07)
    assert all(each.label.tolist() == [1] and each.mask.shape == (SIDE, SIDE, 1) for each in found if each)


def test_added_defects_the_same_seed_epoch_and_row_draw_the_same():
    rows = pd.DataFrame({"label": [0, 1]})
    first, again, other = (Synthetic(rows, 1.0, seed)(3, 0, image()) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, Synthetic(rows, 1.0, 5)(4, 0, image()).image)


def test_added_defects_the_training_loader_draws_defects_and_labels_them(make_dataset, make_config):
    config = make_config(make_dataset(), "train.synthetic=1.0")
    batches = list(training_loader(config, ensure_tables(config).folds, Labels(masks=True)))
    labels, masks = (torch.cat([batch[name] for batch in batches]) for name in ("label", "mask"))
    assert labels.min() == 1 and masks.flatten(1).amax(1).min() == 1  # normal images all got a defect


def test_added_defects_classes_refuse_drawn_defects(make_dataset, config_file, fails_with_one_line):
    path = config_file(make_dataset(), train={"synthetic": 0.5})
    message = fails_with_one_line("train.py", "--config", path, "--set", "data.classes=[a, b]")
    assert "train.synthetic" in message and "data.classes" in message


def test_added_defects_a_detector_of_normal_images_refuses_drawn_defects(
    make_dataset, config_file, fails_with_one_line
):
    path = config_file(make_dataset(), train={"synthetic": 0.5})
    message = fails_with_one_line(
        "train.py", "--config", path, "--model", "convae_reduced", "--set", "train.synthetic=0.5"
    )
    assert "train.synthetic=0.5" in message and "only normal images" in message
