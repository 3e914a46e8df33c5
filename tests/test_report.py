"""The report of a run: what it shows, what it can do without, and how it refuses bad input."""

import re
import shutil
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import run_at, write_png
from matplotlib.figure import Figure
from runs import write_runs

from defects.evaluation.display_scales import (
    AT_THRESHOLD,
    LIMIT_COLOUR,
    compute_defect_scores,
    format_defect_score,
)
from defects.evaluation.estimate import estimate
from defects.reports import curves
from defects.reports.figures import draw_heat_tile, fit_limits
from defects.reports.html import (
    Card,
    Cards,
    Fact,
    KeyFigure,
    PageSection,
    Picture,
    Table,
    Text,
    build_page,
    embed_jpeg,
)
from defects.reports.run_report import build_run_report, draw_gallery
from defects.reports.run_tables import load_run_tables, out_of_fold
from defects.runs import Run
from defects.stages import ensure_tables

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=20, normals=60))


def report(run_script, config, *arguments):
    """The page that the script writes."""
    outcome = run_script("report.py", run_at(config.output.parent / "tiny.yaml"), *arguments)
    assert outcome.code == 0, outcome.stderr
    return (config.experiment_dir / "report" / "report.html").read_text(encoding="utf-8")


def headings(html):
    return [unescape(text) for text in re.findall("<h[23][^>]*>([^<]*)</h", html)]


def test_report_is_one_file_that_asks_for_nothing_else(config, run_script):
    oof = write_runs(config)
    html = report(run_script, config)
    assert [path.name for path in (config.experiment_dir / "report").iterdir()] == ["report.html"]
    sources = re.findall('src="([^"]*)"', html)
    assert len(sources) > 40
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|<script src|<link|url\(h|@import", html)
    assert html.count('loading="lazy"') == html.count('<div class="picture">')
    expected = estimate(out_of_fold(Run(config), ensure_tables(config)))
    for value in (expected["nested_macro_f1"], expected["auroc"], expected["average_precision"]):
        assert f"<b>{value:.3f}</b>" in html
    assert f"{len(oof)} out-of-fold images" in html
    for text in ("pixel AUROC", "AUPRO", "expected macro-F1 (nested CV)"):
        assert text in html
    assert [text for text in headings(html) if "(" not in text] == [
        "Decision", "Folds", "Scores and errors", "Gallery", "Training",
    ]  # fmt: skip


def test_report_texts_of_charts_are_texts(config):
    write_runs(config)
    html = build_run_report(load_run_tables(Run(config), ensure_tables(config)))
    charts = "".join(re.findall("<svg.*?</svg>", html, re.DOTALL))
    for text in (">Errors over the threshold<", ">Precision and recall<", ">defect score<", ">student<"):
        assert text in charts


def test_report_does_without_maps_and_epochs(config, run_script):
    write_runs(config, maps=False, epochs=0)
    html = report(run_script, config)
    assert "has no epochs" in html
    assert "pixel AUROC" not in html
    assert "heat map" not in html


def test_report_of_a_single_fold_estimates_nothing(config):
    write_runs(config, folds="0")
    html = build_run_report(load_run_tables(Run(config), ensure_tables(config)))
    assert "needs two trained folds or more" in html
    assert "90 % interval" not in html
    for text in ("10.0", "12.5", "AUPRO"):  # seconds, images per second
        assert text in html


def test_report_without_defects(make_dataset, make_config, run_script):
    normal = [
        "data.source=folders",
        "data.folders={normal: train/normal_images}",
        "data.sample_submission=null",
    ]
    config = make_config(make_dataset(defects=1), *normal)
    write_runs(config)
    settings = [part for setting in normal for part in ("--set", setting)]
    html = report(run_script, config, *settings)
    assert "macro-F1 cannot be estimated" in html
    assert "by expected_fpr" in html
    galleries = [title for title in headings(html) if ":" in title]
    assert galleries and all(title.startswith("Normal images") for title in galleries)


def test_gallery_shows_the_worst_first_and_wrong_decisions_in_red(config):
    write_runs(config)
    tables = load_run_tables(Run(config), ensure_tables(config))
    grids = [block for block in draw_gallery(tables, 1.0) if isinstance(block, Cards)]
    for label, worst, clearest in ((1, *grids[:2]), (0, *grids[2:])):
        rows = tables.oof[tables.oof["label"] == label].sort_values("score", ascending=label == 1)
        shown = pd.concat([rows[:12], rows[12:][::-1][:4]])
        cards = worst.cards + clearest.cards
        assert [card.hint for card in cards] == shown["image_id"].tolist()
        is_wrong = (shown["score"] >= 1.0) != (label == 1)
        assert [card.facts[-1].is_wrong for card in cards] == is_wrong.tolist()
        scores = compute_defect_scores(shown["score"], 1.0)
        for card, score in zip(cards, scores, strict=True):
            assert card.facts[-1].text.startswith(f"score {format_defect_score(score)}, fold ")
            assert len(card.pictures) == 2


def test_heat_maps_of_all_images_and_folds_share_one_scale(config):
    write_runs(config, scale=3.0)
    tables = load_run_tables(Run(config), ensure_tables(config))
    limits = fit_limits(tables.oof, tables.maps, 0.05)
    # The maps of fold 1 are twice those of fold 0.
    assert np.array(limits["1"]) == pytest.approx(2 * np.array(limits["0"]), rel=0.05)
    tile = np.full((40, 60, 3), 90, np.uint8)
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    normal, threshold = limits["0"]
    good = draw_heat_tile(tile, normal + 0.5 * (threshold - normal) * values, limits["0"])
    assert not (good == LIMIT_COLOUR).all(axis=2).any()
    assert np.abs(good.astype(int) - 90).max() < 60
    bad = draw_heat_tile(tile, normal + 2 * (threshold - normal) * values, limits["0"])
    assert (bad == LIMIT_COLOUR).all(axis=2).any()
    assert np.abs(bad.astype(int) - 90).max() > 100
    moved = (7 + 2 * normal, 7 + 2 * threshold)
    shifted = draw_heat_tile(tile, 7 + 2 * (normal + 2 * (threshold - normal) * values), moved)
    assert np.mean(np.abs(bad.astype(int) - shifted) > 1) < 0.02  # rounding may move the outline


def test_outline_runs_where_the_map_reaches_the_threshold():
    heat = draw_heat_tile(np.zeros((80, 40, 3), np.uint8), place(8, 4, 6, 1), (0.0, 0.5))
    y, x = np.nonzero((heat == LIMIT_COLOUR).all(axis=2))
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
    assert y == expected["equal_error_rate"]
    assert threshold.get_xdata()[0] == AT_THRESHOLD
    assert f"{expected['false_rejection']:.1%}" in rejection.get_label()


def test_curves_pass_through_the_decision():
    labels = np.array([0, 0, 0, 1, 1] * 8)
    oof = scored(labels, np.random.default_rng(3).normal(size=40) + labels)
    expected = estimate(oof)
    axes = Figure().subplots()
    curves.draw_roc(axes, oof, expected)
    pooled, mark = axes.lines[2], axes.lines[-1]
    points = np.column_stack([pooled.get_xdata(), pooled.get_ydata()])
    decision = [mark.get_xdata()[0], mark.get_ydata()[0]]
    assert decision == [expected["false_rejection"], 1 - expected["false_acceptance"]]
    assert (points == decision).all(axis=1).any()


def test_distributions_have_both_classes_and_the_threshold_at_50():
    labels = np.array([0, 0, 0, 1, 1] * 8)
    oof = scored(labels, np.random.default_rng(3).normal(size=40) + labels)
    axes = Figure().subplots()
    curves.draw_distributions(axes, oof, estimate(oof))
    assert len(axes.patches) == 2
    assert [line.get_xdata()[0] for line in axes.lines] == [AT_THRESHOLD]


def test_training_charts_have_one_for_every_loss_and_metric():
    fold = {"epoch": [1, 2, 3], "lr": 1.0, "train_ae": [3.0, 2.0, 1.0], "train_loss": [6.0, 5.0, 4.0]}
    fold |= {"val_loss": [np.nan, np.nan, 5.0], "val_auroc": [np.nan, np.nan, 0.8]}
    histories = {"0": pd.DataFrame(fold), "1": pd.DataFrame(fold)}
    assert curves.list_panels(histories) == ["loss", "ae", "auroc"]
    axes = Figure().subplots()
    curves.draw_history(axes, "loss", histories)
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 3, 1, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "unseen images"]
    assert curves.draw_training_charts({"0": pd.DataFrame()}) == []


def test_page_escapes_all_texts():
    tag = "<em>&\"'"
    picture = Picture("data:,", 2, 1, tag, tag)
    card = Card(tag, (picture,), (Fact(tag),), tag)
    blocks = [Text(tag), Table(pd.DataFrame({tag: [tag]}, index=[tag])), Cards(tag, [card])]
    html = build_page(tag, tag, [PageSection(tag, blocks)], [KeyFigure(tag, tag, tag)])
    body = html[html.index("<body>") : html.index("<dialog")]
    assert "<em>&" not in body
    assert body.count("&lt;em&gt;&amp;") == 17


@pytest.mark.skipif(BROWSER is None, reason="no browser is on the path")
def test_page_enlarges_images_and_fetches_nothing(tmp_path):
    from playwright.sync_api import expect, sync_playwright

    picture = embed_jpeg(np.full((40, 60, 3), 90, np.uint8), "grey")
    cards = [Card(f"{number}.png", (picture,), hint=f"folder/{number}.png") for number in range(3)]
    path = tmp_path / "page.html"
    path.write_text(build_page("page", "", [PageSection("images", [Cards("", cards)])]), encoding="utf-8")
    requests, complaints = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        name, dialog = page.locator(".stage b"), page.locator("dialog")
        page.click("main .card >> nth=1 >> img")
        expect(name).to_have_text("1.png")
        page.keyboard.press("ArrowRight")
        page.click("dialog [data-step='1']")
        expect(name).to_have_text("0.png")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        browser.close()
    assert set(requests) <= {"file", "data"}
    assert complaints == []


def test_bad_input_ends_in_one_line(config, fails_with_one_line):
    path = config.output.parent / "tiny.yaml"
    assert "run src/train.py first" in fails_with_one_line("report.py", run_at(path))
    write_runs(config)
    maps = config.experiment_dir / "fold1" / "oof_maps.npz"
    maps.write_bytes(maps.read_bytes()[:500])
    assert "oof_maps.npz is no archive of maps" in fails_with_one_line("report.py", run_at(path))
    maps.unlink()
    (config.experiment_dir / "fold0" / "metrics.jsonl").write_text("{")
    assert "metrics.jsonl is not readable" in fails_with_one_line("report.py", run_at(path))
    write_png(config.data.root / "train/normal_images/new.png", np.zeros((32, 32), np.uint8))
    (config.dataset_dir / "prepare.json").unlink()
    assert "train again with --restart" in fails_with_one_line("report.py", run_at(path))
