import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import data_in, defective, texture, write_png
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from defects.config import load_config
from defects.data.images import read_image
from defects.data.sibling_report import load_search
from defects.data.split import load_folds
from defects.report import explore as page
from defects.report import sibling_page
from defects.report.drawing import CONTOUR, TILE, caption, image_tile
from defects.report.explore import COLUMNS


def _images(**columns) -> pd.DataFrame:
    """Rows of images.csv with their part; columns not given are those of a normal training image."""
    plain = {"split": "train", "label": 0, "kind": "", "mask_path": "", "width": 32, "height": 32}
    table = pd.DataFrame(plain | columns).astype({"label": "Int64"})
    return table.assign(part=page.part(table))


def _draw(config) -> np.ndarray:
    """Write the page of a data set; the picture, RGB, after a look that it is one."""
    picture = read_image(page.explore(config)[0])
    assert picture.shape[1] == 1500
    assert np.ptp(picture) > 200
    return picture


def _panels(figure) -> dict[str, object]:
    return {axes.get_title(loc="left"): axes for axes in figure.subfigs[0].axes}


def _yellow(picture: np.ndarray) -> int:
    return int((np.abs(picture.astype(int) - CONTOUR).max(axis=2) < 40).sum())


def test_script_writes_both_files_and_the_earlier_stages(make_dataset, config_file, run_script, tmp_path):
    outcome = run_script("explore.py", "--config", config_file(make_dataset()))
    assert outcome.code == 0, outcome.stderr
    names = ("images.csv", "folds.csv", "explore.png", "groups.png", "siblings.png", "adversarial.json")
    for name in names:
        assert (tmp_path / "output" / "tiny_data" / name).stat().st_size > 0
    assert outcome.stdout.count("wrote ") == 4
    assert _yellow(read_image(tmp_path / "output" / "tiny_data" / "explore.png")) > 12 * 50


def test_charts_show_the_counts_of_the_data(make_dataset, make_config):
    config = make_config(make_dataset())
    folds = load_folds(config)
    images = page.load_images(config)
    images = images.assign(part=page.part(images))
    figure = page.build_figure(config.data, images, folds)
    panels = _panels(figure)
    assert [bar.get_width() for bar in panels["Classes"].patches] == [12, 30, 6]
    assert sum(bar.get_height() for bar in panels["Defective area"].patches) == 12
    assert panels["Photographs of the same thing"].patches[0].get_height() == folds["group"].nunique()
    assert figure.get_suptitle() == "tiny_data: 42 training images, 6 test images"
    titles = [grid.get_suptitle() for grid in figure.subfigs[1:]]
    assert titles[0] == "train defect: 12 of 12 images, defects outlined"
    assert titles[1:] == ["train normal: 16 of 30 images", "test: 6 of 6 images"]


def test_grey_levels_and_area_are_those_of_the_pixels(make_dataset, make_config):
    config = make_config(make_dataset(defects=2, normals=2, tests=1))
    images = page.load_images(config)
    measured = page.measure(config.data, images.assign(part=page.part(images)))
    assert measured["part"].tolist() == ["train defect"] * 2 + ["train normal"] * 2 + ["test"]
    pictures = [defective(0)[0], defective(1)[0], texture(1000), texture(1001), defective(2000)[0]]
    np.testing.assert_allclose(measured["mean"], [picture.mean() for picture in pictures])
    np.testing.assert_allclose(measured["deviation"], [picture.std() for picture in pictures])
    np.testing.assert_array_equal(measured["area"], [6.25, 6.25, np.nan, np.nan, np.nan])


def test_outline_runs_around_the_defect_without_covering_it(tmp_path):
    image, mask = np.full((440, 220), 100, np.uint8), np.zeros((440, 220), np.uint8)
    mask[100:300, 100:104] = 255
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "mask.png", mask)
    tile = image_tile(data_in(tmp_path), {"path": "image.png", "mask_path": "mask.png"})
    assert tile.shape == (TILE, TILE // 2, 3)
    assert (tile[100, 50:52] == 100).all()
    yellow = cv2.boundingRect((tile == CONTOUR).all(axis=2).astype(np.uint8))
    assert yellow == pytest.approx((46, 46, 10, 108), abs=3)


def test_without_defects_masks_and_test_images(make_dataset, config_file):
    root = make_dataset(defects=0, normals=10, tests=1)
    folders = {"normal": "train/normal_images"}
    config = load_config(config_file(root, data={"source": "folders", "folders": folders}))
    assert _yellow(_draw(config)) == 0


def test_very_different_sizes_strange_names_and_defects_without_masks(config_file, tmp_path):
    root = tmp_path / "mixed"
    for i, shape in enumerate([(2, 300), (300, 2), (8, 8), (600, 500), (64, 64), (65, 64)]):
        noise = np.random.default_rng(i).integers(0, 255, shape, dtype=np.uint8)
        write_png(root / "normal" / f"正常_$a_{i}$_{'long' * 9}.png", noise)
        write_png(root / "bent" / f"défaut {i}.png", 255 - noise[:60])
    data = {"source": "folders", "name": "Stahl_鋼_$x_1$", "folders": {"abnormal": "bent"}}
    config = load_config(config_file(root, data=data, split={"duplicates": {"enabled": False}}))
    assert _yellow(_draw(config)) == 0


def test_equal_sizes_show_the_rare_class_on_top():
    axes = Figure().subplots()
    images = _images(label=[1] + 9 * [0])
    page.draw_sizes(axes, images)
    assert page.size_summary(images) == "all 10 images are 32 × 32"
    bubbles = axes.collections[0]
    assert bubbles.get_offsets().tolist() == [[32, 32], [32, 32]]
    assert bubbles.get_sizes()[0] > bubbles.get_sizes()[1]
    np.testing.assert_allclose(bubbles.get_facecolors()[1][:3], to_rgb(page.COLOURS["train defect"]))


def test_sizes_far_apart_get_a_logarithmic_axis():
    axes = Figure().subplots()
    page.draw_sizes(axes, _images(width=[32, 64, 4000], height=[100, 120, 140]))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_kinds_are_counted_and_the_many_rare_ones_summed():
    kinds = [f"kind {k:02}" for k in range(12) for _ in range(12 - k)]
    counts = page.class_counts(_images(label=1, kind=kinds))
    assert counts["train defect"] == 78
    assert counts["train normal"] == counts["test"] == 0
    assert counts["defect: kind 00"] == 12
    assert counts["defect: 5 other kinds"] == 5 + 4 + 3 + 2 + 1
    assert len(counts) == 3 + page.KINDS


def test_group_sizes():
    groups = [0] + [1] * 2 + [2] * 2 + [3] * 7 + [4] * 30
    sizes = page.group_sizes(pd.DataFrame({"group": groups}))
    assert sizes[sizes > 0].to_dict() == {"1": 1, "2": 2, "6–10": 1, "> 20": 1}


def test_samples_are_distinct_and_do_not_follow_a_period_of_the_data():
    table = pd.DataFrame({"texture": np.arange(600) % 10})
    rows = page.spread(table, 2 * COLUMNS)
    assert rows.index.is_unique and rows.index.is_monotonic_increasing
    assert rows["texture"].nunique() > 5
    assert page.spread(table, 1000).index.equals(table.index)


def test_long_captions_are_cut_in_the_middle():
    assert caption("bent/a_rather_long_name_0042.png", "bent") == "bent\na_rather_…_name_0042"


def test_page_of_siblings_shows_joined_pairs_and_the_threshold(make_dataset, make_config):
    root = make_dataset(defects=4, normals=30, size=96)
    folder = root / "train" / "normal_images"
    write_png(folder / "mirrored.png", np.uint8(texture(1003, 96)[:, ::-1] * 0.8))
    config = make_config(root)
    images = load_folds(config).set_index("image_id", drop=False)
    search = load_search(config)
    pairs = pd.read_csv(config.dataset_dir / "pairs.csv", keep_default_na=False)
    joined = sibling_page.least_certain(pairs, images.reset_index(drop=True))
    assert joined[["i", "flip"]].to_numpy().tolist() == [["normal_images/mirrored.png", "horizontal"]]
    figure = sibling_page.build_figure(config.data, images, search, joined, joined.iloc[:0])
    chart, *pictures = [
        panel for part in figure.subfigs for panel in part.axes if panel.axison or panel.images
    ]
    assert search["threshold"] == pytest.approx(np.tanh(chart.lines[0].get_xdata()[0]))
    first, second = np.array_split(pictures[0].images[0].get_array(), 2, axis=1)
    assert np.corrcoef(first[:, :90].ravel(), second[:, :90].ravel())[0, 1] > 0.95


def test_page_of_siblings_is_absent_without_a_search(make_dataset, make_config):
    config = make_config(make_dataset(), "split.duplicates.enabled=false")
    assert sibling_page.draw_siblings(config, load_folds(config)) == []
