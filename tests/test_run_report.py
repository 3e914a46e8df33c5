"""The report of a run: what it shows, what it can do without, and how it refuses bad input."""

import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import run_at, write_png
from runs import write_runs

from defects.evaluation.display_scales import LIMIT_COLOUR, compute_defect_scores, format_defect_score
from defects.evaluation.estimate import estimate
from defects.reports.figures import draw_heat_tile, fit_limits
from defects.reports.html import Cards
from defects.reports.run_report import build_run_report, draw_gallery, load_aligned_oof, load_run_tables
from defects.runs import Run
from defects.stages import ensure_tables


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
    expected = estimate(load_aligned_oof(Run(config), ensure_tables(config)))
    for value in (expected["nested_macro_f1"], expected["auroc"], expected["average_precision"]):
        assert f"<b>{value:.3f}</b>" in html
    assert f"{len(oof)} out-of-fold images" in html
    for text in ("pixel AUROC", "AUPRO", "expected macro-F1 (nested CV)"):
        assert text in html
    assert [text for text in headings(html) if "(" not in text] == [
        "Decision", "What may be claimed", "Folds", "Scores and errors", "Gallery", "Training",
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
    assert "at most 5 % of normal images rejected" in html
    galleries = [title for title in headings(html) if ":" in title]
    assert galleries and all(title.startswith("Normal images") for title in galleries)


def test_gallery_shows_the_worst_first_and_wrong_decisions_in_red(config):
    write_runs(config)
    tables = load_run_tables(Run(config), ensure_tables(config))
    grids = [block for block in draw_gallery(tables, 1.0) if isinstance(block, Cards)]
    for label, worst, clearest in ((1, *grids[:2]), (0, *grids[2:])):
        rows = tables.oof[tables.oof["label"] == label].sort_values("score", ascending=label == 1)
        shown = pd.concat([rows[:12], rows[12:][::-1][:6]])
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
