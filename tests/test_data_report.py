"""The page about a data set: its charts, sample images and groups."""

import re
from base64 import b64decode
from html import unescape

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import data_in, defective, texture, write_png
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from defects.config import load_config
from defects.data.fold_files import load_search
from defects.reports import data_report
from defects.reports.charts import shorten_name
from defects.reports.figures import MASK_COLOUR, MOST_COMPARED, draw_side_by_side, mark_defects, read_tile
from defects.reports.html import Cards
from defects.stages import ensure_images, ensure_tables


def _images(**columns) -> pd.DataFrame:
    """Rows of images.csv with their part; columns not given are those of a normal training image."""
    plain = {"split": "train", "label": 0, "kind": "", "mask_path": "", "width": 32, "height": 32}
    table = pd.DataFrame(plain | columns).astype({"label": "Int64"})
    return table.assign(part=data_report.name_parts(table))


def _draw(config) -> str:
    tables = ensure_tables(config)
    return data_report.build_data_report(config.data, tables.images, tables.folds, [])


def _headings(html: str) -> list[str]:
    return [unescape(text) for text in re.findall("<h3[^>]*>([^<]*)</h3>", html)]


def test_data_report_script_writes_the_pages_and_the_earlier_stages(
    make_dataset, config_file, run_script, tmp_path
):
    outcome = run_script("explore.py", "--config", config_file(make_dataset()))
    assert outcome.code == 0, outcome.stderr
    for name in ("images.csv", "folds.csv", "explore.html", "adversarial.json"):
        assert (tmp_path / "output" / "tiny_data" / name).stat().st_size > 0
    assert outcome.stdout.count("wrote ") == 2
    html = (tmp_path / "output" / "tiny_data" / "explore.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script src|<link|@import", html)
    assert html.count("data:image/jpeg") >= 42
    assert "<h2>How alike photographs are</h2>" in html


def test_data_report_charts_and_samples_show_the_counts_of_the_data(make_dataset, make_config):
    config = make_config(make_dataset())
    folds = ensure_tables(config).folds
    images = ensure_images(config)
    images = images.assign(part=data_report.name_parts(images))
    drawn = {}
    for panel in data_report.list_panels_of(images, folds, data_report.measure_images(config.data, images)):
        axes = Figure().subplots()
        panel(axes)
        drawn[axes.get_title(loc="left")] = axes.patches
    assert [bar.get_width() for bar in drawn["Classes"]] == [12, 30, 6]
    assert sum(bar.get_height() for bar in drawn["Defective area"]) == 12
    assert drawn["Photographs of the same thing"][0].get_height() == folds["group"].nunique()
    html = _draw(config)
    assert "42 training images, 6 test images" in html
    assert _headings(html) == [
        "train defect: 12 of 12 images, defects outlined in yellow",
        "train normal: 24 of 30 images",
        "test: 6 of 6 images",
    ]


def test_data_report_grey_levels_and_area_are_those_of_the_pixels(make_dataset, make_config):
    config = make_config(make_dataset(defects=2, normals=2, tests=1))
    images = ensure_images(config)
    measured = data_report.measure_images(config.data, images.assign(part=data_report.name_parts(images)))
    assert measured["part"].tolist() == ["train defect"] * 2 + ["train normal"] * 2 + ["test"]
    pictures = [defective(0)[0], defective(1)[0], texture(1000), texture(1001), defective(2000)[0]]
    np.testing.assert_allclose(measured["mean"], [picture.mean() for picture in pictures])
    np.testing.assert_allclose(measured["deviation"], [picture.std() for picture in pictures])
    np.testing.assert_array_equal(measured["area"], [6.25, 6.25, np.nan, np.nan, np.nan])


def test_data_report_outline_runs_around_the_defect_without_covering_it(tmp_path):
    image, mask = np.full((440, 220), 100, np.uint8), np.zeros((440, 220), np.uint8)
    mask[100:300, 100:104] = 255
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "mask.png", mask)
    data, row = data_in(tmp_path), {"path": "image.png", "mask_path": "mask.png"}
    tile = mark_defects(read_tile(data, row, 220 * 110), data, row)
    assert tile.shape == (220, 110, 3)
    assert (tile[100, 50:52] == 100).all()
    yellow = cv2.boundingRect((tile == MASK_COLOUR).all(axis=2).astype(np.uint8))
    assert yellow == pytest.approx((46, 46, 10, 108), abs=3)


def test_data_report_defects_count_as_far_as_they_lie_in_the_region_of_interest(tmp_path):
    mask = np.zeros((220, 220), np.uint8)
    mask[80:140, 80:140] = 255
    write_png(tmp_path / "image.png", np.full((220, 220), 100, np.uint8))
    write_png(tmp_path / "mask.png", mask)
    data = data_in(tmp_path, roi={"rectangle": [0.5, 0, 1, 1]})
    row = {"path": "image.png", "mask_path": "mask.png"}
    columns = []
    for are_whole in (False, True):
        tile = mark_defects(read_tile(data, row, 220 * 220), data, row, are_whole)
        columns.append(np.flatnonzero((tile == MASK_COLOUR).all(axis=2).any(axis=0))[[0, -1]].tolist())
    assert columns == pytest.approx(np.array([[107, 143], [77, 143]]), abs=2)
    measured = data_report.measure_images(data, pd.DataFrame([row | {"part": "train defect"}]))
    assert measured["area"].tolist() == pytest.approx([100 * 30 * 60 / (110 * 220)])


def test_data_report_report_without_defects_masks_and_groups(make_dataset, config_file):
    root = make_dataset(defects=0, normals=10, tests=1)
    folders = {"normal": "train/normal_images"}
    html = _draw(load_config(config_file(root, data={"source": "folders", "folders": folders})))
    assert "no defects to learn from" in html
    assert data_report.NO_GROUPS_TEXT in html
    assert "outlined" not in html
    assert "Defective area" not in html


def test_data_report_report_of_very_different_sizes_strange_names_and_no_masks(config_file, tmp_path):
    root = tmp_path / "mixed"
    for i, shape in enumerate([(2, 300), (300, 2), (8, 8), (600, 500), (64, 64), (65, 64)]):
        noise = np.random.default_rng(i).integers(0, 255, shape, dtype=np.uint8)
        write_png(root / "normal" / f"正常_$a_{i}$_{'long' * 9}.png", noise)
        write_png(root / "bent" / f"défaut {i}.png", 255 - noise[:60])
    data = {"source": "folders", "name": "Stahl_鋼_$x_1$", "folders": {"abnormal": "bent"}}
    config = load_config(config_file(root, data=data, split={"duplicates": {"enabled": False}}))
    html = _draw(config)
    assert "<h1>Stahl_鋼_$x_1$</h1>" in html
    assert f"<b>正常_$a_0$_{'long' * 9}.png</b>" in html


def _groups(tmp_path, labels, groups):
    """The grids of groups of images with these labels."""
    rows = []
    for number, (label, group) in enumerate(zip(labels, groups, strict=True)):
        write_png(tmp_path / f"{number}.png", texture(number))
        rows.append({"image_id": f"{number}.png", "path": f"{number}.png", "label": label, "group": group})
    blocks = data_report.draw_groups(data_in(tmp_path), pd.DataFrame(rows))
    return [block for block in blocks if isinstance(block, Cards)]


def test_data_report_groups_of_both_classes_come_first_and_are_marked(tmp_path):
    mixed, same = _groups(tmp_path, [0, 0, 0, 0, 1, 1], [7, 7, 7, 3, 3, 5])
    assert (mixed.title, mixed.is_alert) == ("Groups that hold both classes (1 of 1)", True)
    assert [picture.caption for picture in mixed.cards[0].pictures] == ["3.png: normal", "4.png: defect"]
    assert (same.title, same.is_alert) == ("Groups of one class (1 of 1)", False)
    assert [len(card.pictures) for card in same.cards] == [3]


def test_data_report_groups_shown_are_the_largest_and_a_sample_of_the_others():
    assert data_report.choose_groups(pd.Index(range(10)), 4) == [0, 1, 2, 9]
    assert data_report.choose_groups(pd.Index(range(3)), 40) == [0, 1, 2]
    assert data_report.choose_groups(pd.Index([]), 40) == []


def test_data_report_siblings_show_joined_pairs_and_the_threshold(make_dataset, make_config):
    root = make_dataset(defects=4, normals=30, size=96)
    folder = root / "train" / "normal_images"
    write_png(folder / "mirrored.png", np.uint8(texture(1003, 96)[:, ::-1] * 0.8))
    config = make_config(root)
    folds = ensure_tables(config).folds
    pairs = pd.read_csv(config.dataset_dir / "pairs.csv", keep_default_na=False)
    joined = data_report.choose_least_certain(pairs, folds)
    assert joined[["i", "flip"]].to_numpy().tolist() == [["normal_images/mirrored.png", "horizontal"]]
    axes = Figure().subplots()
    search = load_search(config)
    data_report.draw_correlations(axes, search)
    assert search["threshold"] == pytest.approx(np.tanh(axes.lines[0].get_xdata()[0]))
    cards = next(block for block in data_report.draw_siblings(config, folds) if isinstance(block, Cards))
    first, second = (_decode(picture) for picture in cards.cards[0].pictures)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.95


def test_data_report_siblings_are_absent_without_a_search(make_dataset, make_config):
    config = make_config(make_dataset(), "split.duplicates.enabled=false")
    assert data_report.draw_siblings(config, ensure_tables(config).folds) == []


def _decode(picture) -> np.ndarray:
    """The grey levels of a picture of a page."""
    content = b64decode(picture.source.partition(",")[2])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_data_report_side_by_side_says_how_many_are_left_out(tmp_path):
    write_png(tmp_path / "a.png", texture(0))
    card = draw_side_by_side(data_in(tmp_path), 20 * [{"path": "a.png"}], 20 * ["0.91"], "pair")
    assert len(card.pictures) == MOST_COMPARED
    assert card.pictures[0].caption == "a.png: 0.91"
    assert card.facts[0].text == "and 8 more"


def test_data_report_equal_sizes_show_the_rare_class_on_top():
    axes = Figure().subplots()
    images = _images(label=[1] + 9 * [0])
    data_report.draw_image_sizes(axes, images)
    assert data_report.describe_sizes(images) == "all 10 images are 32 × 32"
    bubbles = axes.collections[0]
    assert bubbles.get_offsets().tolist() == [[32, 32], [32, 32]]
    assert bubbles.get_sizes()[0] > bubbles.get_sizes()[1]
    np.testing.assert_allclose(
        bubbles.get_facecolors()[1][:3], to_rgb(data_report.PART_COLOURS["train defect"])
    )


def test_data_report_sizes_far_apart_get_a_logarithmic_axis():
    axes = Figure().subplots()
    data_report.draw_image_sizes(axes, _images(width=[32, 64, 4000], height=[100, 120, 140]))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_data_report_kinds_are_counted_and_the_many_rare_ones_summed():
    kinds = [f"kind {k:02}" for k in range(12) for _ in range(12 - k)]
    counts = data_report.count_classes(_images(label=1, kind=kinds))
    assert counts["train defect"] == 78
    assert counts["train normal"] == counts["test"] == 0
    assert counts["defect: kind 00"] == 12
    assert counts["defect: 5 other kinds"] == 5 + 4 + 3 + 2 + 1
    assert len(counts) == 3 + data_report.KIND_BARS


def test_data_report_count_group_sizes():
    groups = [0] + [1] * 2 + [2] * 2 + [3] * 7 + [4] * 30
    sizes = data_report.count_group_sizes(pd.DataFrame({"group": groups}))
    assert sizes[sizes > 0].to_dict() == {"1": 1, "2": 2, "6–10": 1, "> 20": 1}


def test_data_report_samples_are_distinct_and_do_not_follow_a_period_of_the_data():
    table = pd.DataFrame({"texture": np.arange(600) % 10})
    rows = data_report.pick_spread(table, 16)
    assert rows.index.is_unique and rows.index.is_monotonic_increasing
    assert rows["texture"].nunique() > 5
    assert data_report.pick_spread(table, 1000).index.equals(table.index)


def test_data_report_long_names_of_kinds_lose_their_middle():
    assert shorten_name("a_rather_long_name_of_a_kind_0042") == "a_rather_lo…_a_kind_0042"
    assert shorten_name("bent") == "bent"
