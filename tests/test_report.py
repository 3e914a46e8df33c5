"""The report of an experiment: what it shows, what it can do without, and how it refuses bad input."""

import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from conftest import write_png
from matplotlib.figure import Figure
from runs import write_runs

from defects.data.images import read_image
from defects.report import curves, gallery, page
from defects.report.drawing import DEFECT
from defects.report.experiment import build_page
from defects.report.results import all_fold_figures, out_of_fold
from defects.scoring.estimate import estimate
from defects.scoring.pixels import Maps


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=20, normals=60))


def report(run_script, config, *arguments):
    outcome = run_script("report.py", "--config", config.output.parent / "tiny.yaml", *arguments)
    assert outcome.code == 0, outcome.stderr
    return config.experiment_dir / "report"


def test_page_holds_its_pictures_and_asks_for_nothing_else(config, run_script):
    oof = write_runs(config)
    folder = report(run_script, config)
    html = (folder / "report.html").read_text(encoding="utf-8")
    names = ["scores", "gallery_defect", "gallery_normal", "training"]
    embedded = [b64decode(text) for text in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    assert embedded == [(folder / f"{name}.png").read_bytes() for name in names]
    assert all(np.ptp(read_image(folder / f"{name}.png")) > 200 for name in names)
    assert html.count("src=") == len(names) and not re.search(r"https?:|<script|<link|url\(|@import", html)
    expected = estimate(out_of_fold(config))
    for value in (expected["nested_macro_f1"], expected["auroc"], expected["average_precision"]):
        assert f"<b>{value:.3f}</b>" in html
    assert f"{len(oof)} out-of-fold images" in html and "pixel AUROC" in html and "AUPRO" in html


def test_report_does_without_maps_and_epochs(config, run_script):
    write_runs(config, maps=False, epochs=0)
    left_over = config.experiment_dir / "report" / "training.png"
    left_over.parent.mkdir()
    left_over.touch()
    folder = report(run_script, config)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not left_over.exists() and "has no epochs" in html and "pixel AUROC" not in html
    assert {path.stem for path in folder.iterdir()} == {
        "report",
        "scores",
        "gallery_defect",
        "gallery_normal",
    }


def test_figures_of_a_single_fold_promise_nothing(config):
    write_runs(config, folds="0")
    oof = out_of_fold(config)
    html = build_page(config, estimate(oof), all_fold_figures(config, oof), {})
    assert "needs two trained folds or more" in html and "interval" not in html
    assert "10.0" in html and "12.5" in html and "AUPRO" in html  # seconds, images per second


def test_report_of_a_plant_without_defects(make_dataset, make_config, run_script):
    normal = [
        "data.source=folders",
        "data.folders={normal: train/normal_images}",
        "data.sample_submission=null",
    ]
    config = make_config(make_dataset(defects=1), *normal)
    write_runs(config)
    settings = [part for setting in normal for part in ("--set", setting)]
    folder = report(run_script, config, *settings)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "no macro-F1 can be promised" in html and "by expected_fpr" in html
    assert not (folder / "gallery_defect.png").exists() and (folder / "gallery_normal.png").exists()


def test_gallery_shows_the_worst_first_and_the_wrongly_decided_in_red(config):
    write_runs(config)
    oof = out_of_fold(config)
    maps = {fold: Maps(config.experiment_dir / f"fold{fold}" / "oof_maps.npz") for fold in "01"}
    scales = gallery.map_scales(oof, maps)
    for label in (0, 1):
        rows = oof[oof["label"] == label].sort_values("score", ascending=label == 1)
        sheet = gallery.draw_gallery(config.data, rows.sample(frac=1), maps, scales, 1.0)
        captions = [(text, style) for _, _, text, style in sheet.texts if ", fold " in text]
        names = [text.split("\n")[0] for text, _ in captions]
        ids = [path.rsplit("/")[-1].removesuffix(".png") for path in rows["image_id"]]
        assert names == ids[:12] + ids[12:][::-1][:4]
        red = [style["color"] == DEFECT for _, style in captions]
        wrong = ((rows["score"] >= 1.0) != (label == 1)).tolist()
        assert red == wrong[:12] + wrong[12:][::-1][:4]


def test_heat_maps_of_all_images_and_folds_share_one_scale(config):
    write_runs(config, scale=3.0)
    oof = out_of_fold(config)
    maps = {fold: Maps(config.experiment_dir / f"fold{fold}" / "oof_maps.npz") for fold in "01"}
    scales = gallery.map_scales(oof, maps)
    assert np.array(scales["1"]) == pytest.approx(
        2 * np.array(scales["0"]), rel=0.05
    )  # fold 1 maps are twice
    tile, values = np.full((40, 60, 3), 90, np.uint8), np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    median, cut = scales["0"]
    good = gallery.heat_tile(tile, median + 0.5 * (cut - median) * values, scales["0"])
    cyan = (good == gallery.MAP_CONTOUR).all(axis=2)
    assert not cyan.any() and np.abs(good.astype(int) - 90).max() < 60  # no contour, hardly any colour
    bad = gallery.heat_tile(tile, median + 4 * (cut - median) * values, scales["0"])
    assert (bad == gallery.MAP_CONTOUR).all(axis=2).any() and np.abs(bad.astype(int) - 90).max() > 100
    shifted = gallery.heat_tile(
        tile, 7 + 2 * (median + 4 * (cut - median) * values), (7 + 2 * median, 7 + 2 * cut)
    )
    assert np.mean(np.abs(bad.astype(int) - shifted) > 1) < 0.02  # rounding may move the contour


def test_contour_runs_where_the_map_exceeds_the_threshold():
    heat = gallery.heat_tile(np.zeros((80, 40, 3), np.uint8), place(8, 4, 6, 1), (0.0, 0.5))
    y, x = np.nonzero((heat == gallery.MAP_CONTOUR).all(axis=2))
    assert (y.min(), y.max(), x.min(), x.max()) == pytest.approx((60, 69, 10, 19), abs=4)


def place(height, width, y, x):
    values = np.zeros((height, width), np.float32)
    values[y, x] = 1
    return values


def scored(labels, scores):
    return pd.DataFrame(
        {
            "image_id": [f"i{row}" for row in range(len(labels))],
            "label": labels,
            "raw": scores,
            "score": scores,
            "fold": [str(row % 2) for row in range(len(labels))],
            "group": range(len(labels)),
        }
    )


def test_error_rates_cross_at_the_equal_error_point():
    rng = np.random.default_rng(0)
    labels = (np.arange(300) % 5 == 0).astype(int)
    oof = scored(labels, rng.normal(size=300) + 2 * labels)
    axes = Figure().subplots()
    expected = estimate(oof)
    curves.draw_error_rates(axes, oof, expected)
    rejection, acceptance, point, threshold = axes.lines
    x, y = point.get_xdata()[0], point.get_ydata()[0]
    for line in (rejection, acceptance):
        before = np.searchsorted(line.get_xdata(), x)
        assert line.get_ydata()[before] == pytest.approx(y, abs=0.03)
    assert y == expected["equal_error_rate"] and threshold.get_xdata()[0] == expected["score_threshold"]
    assert f"{expected['false_rejection']:.1%}" in rejection.get_label()


def test_curves_pass_through_the_decision():
    labels = np.array([0, 0, 0, 1, 1] * 8)
    oof = scored(labels, np.random.default_rng(3).normal(size=40) + labels)
    figure, expected = curves.score_charts(oof, estimate(oof)), estimate(oof)
    roc = next(axes for axes in figure.axes if axes.get_title(loc="left") == "ROC")
    pooled, mark = roc.lines[2], roc.lines[-1]
    points = np.column_stack([pooled.get_xdata(), pooled.get_ydata()])
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (
        expected["false_rejection"],
        1 - expected["false_acceptance"],
    )
    on_a_step = (points == [mark.get_xdata()[0], mark.get_ydata()[0]]).any(axis=1)
    assert on_a_step.any()
    assert len(figure.axes[0].patches) == 2  # histograms of both classes


def test_training_charts_have_a_panel_for_every_loss_and_metric():
    fold = {"epoch": [1, 2, 3], "lr": 1.0, "train_ae": [3.0, 2.0, 1.0], "train_loss": [6.0, 5.0, 4.0]}
    fold |= {"val_loss": [np.nan, np.nan, 5.0], "val_auroc": [np.nan, np.nan, 0.8]}
    figure = curves.training_charts({"0": pd.DataFrame(fold), "1": pd.DataFrame(fold)})
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}
    assert list(panels) == ["loss", "ae", "AUROC"]
    assert [len(line.get_xdata()) for line in panels["loss"].lines] == [3, 3, 1, 1]
    assert [text.get_text() for text in panels["loss"].get_legend().get_texts()] == [
        "training",
        "unseen images",
    ]
    assert curves.training_charts({"0": pd.DataFrame()}) is None


def test_text_of_a_page_is_no_html():
    html = page.page(
        "<b>&",
        "a < b",
        [page.section("<i>", "<u>", page.picture(b"", '"<')), page.key_figures([("<", ">", "&")])],
    )
    for tag in ("<b>&", "<i>", "<u>", '"<"'):
        assert tag not in html.replace("<b>&gt;</b>", "")
    assert page.table(pd.DataFrame({"<a>": ["<td>"]})).count("<td>") == 1


def test_bad_input_ends_in_one_line(config, fails_with_one_line):
    path = config.output.parent / "tiny.yaml"
    assert "run src/train.py first" in fails_with_one_line("report.py", "--config", path)
    write_runs(config)
    maps = config.experiment_dir / "fold1" / "oof_maps.npz"
    maps.write_bytes(maps.read_bytes()[:500])
    assert "oof_maps.npz is no archive of maps" in fails_with_one_line("report.py", "--config", path)
    maps.unlink()
    (config.experiment_dir / "fold0" / "metrics.jsonl").write_text("{")
    assert "metrics.jsonl is not readable" in fails_with_one_line("report.py", "--config", path)
    write_png(config.data.root / "train/normal_images/new.png", np.zeros((32, 32), np.uint8))
    (config.dataset_dir / "prepare.json").unlink()
    assert "train again with --restart" in fails_with_one_line("report.py", "--config", path)
