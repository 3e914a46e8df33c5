"""Charts: the fonts for the letters of any name, and the charts of a run."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from defects.evaluation.display_scales import AT_THRESHOLD
from defects.evaluation.estimate import estimate
from defects.reports import charts

LETTERS = "결함"  # Korean: defect
OTHERS = "图案"


def make_font(path, family, letters):
    """A TrueType font whose letters are black squares."""
    names = [".notdef", *(f"u{ord(letter):04x}" for letter in letters)]
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def fonts(monkeypatch):
    """No fonts but those that come with matplotlib, and nothing known from other tests."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(charts, "_fallback_fonts", [])
    monkeypatch.setattr(charts, "_reported_letters", set())


def install(path):
    font_manager.fontManager.addfont(path)


def write_title(text):
    figure = Figure(figsize=(3, 1))
    figure.suptitle(text)
    return figure


@pytest.mark.parametrize("family", ["Noto Sans CJK SC", "A Font of the Works"])
def test_find_fonts_finds_whichever_font_has_the_letters(tmp_path, family):
    install(make_font(tmp_path / "some.ttf", family, LETTERS))
    assert charts.find_fonts(set(LETTERS)) == [family]
    assert charts.find_fonts(set(OTHERS)) == []
    assert charts.find_fonts({"A"}) != [family] and charts.find_fonts(set()) == []


def test_find_fonts_joins_fonts_that_have_a_part_each(tmp_path):
    install(make_font(tmp_path / "one.ttf", "One", LETTERS))
    install(make_font(tmp_path / "other.ttf", "Other", LETTERS[0] + OTHERS))
    assert charts.find_fonts(set(LETTERS + OTHERS)) == ["Other", "One"]


def test_png_is_drawn_with_a_font_that_has_the_letters(tmp_path, capsys):
    boxes = charts.draw_png(lambda: write_title(LETTERS))
    capsys.readouterr()
    install(make_font(tmp_path / "some.ttf", "A Font of the Works", LETTERS))
    charts._reported_letters.clear()
    assert charts.draw_png(lambda: write_title(LETTERS)) != boxes
    assert capsys.readouterr().out == ""


def test_letters_that_no_font_has_are_told_once(capsys):
    for _ in range(2):
        charts.draw_png(lambda: write_title(LETTERS + OTHERS))
    charts.draw_png(lambda: write_title(LETTERS))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: no installed font has the letters") and "and 1 more" in line
    assert sum(letter in line for letter in LETTERS + OTHERS) == 3


def test_svg_has_its_letters_as_text_and_says_nothing(capsys):
    assert LETTERS in charts.draw_svg(lambda: write_title(LETTERS))
    assert capsys.readouterr().out == ""


def test_other_warnings_are_handed_on():
    def draw():
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
        return b""

    with pytest.warns(RuntimeWarning, match="something else"):
        charts.draw_with_fonts(draw)


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
    charts.draw_error_rates(axes, oof, expected)
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
    charts.draw_roc(axes, oof, expected)
    pooled, mark = axes.lines[2], axes.lines[-1]
    points = np.column_stack([pooled.get_xdata(), pooled.get_ydata()])
    decision = [mark.get_xdata()[0], mark.get_ydata()[0]]
    assert decision == [expected["false_rejection"], 1 - expected["false_acceptance"]]
    assert (points == decision).all(axis=1).any()


def test_distributions_have_both_classes_and_the_threshold_at_50():
    labels = np.array([0, 0, 0, 1, 1] * 8)
    oof = scored(labels, np.random.default_rng(3).normal(size=40) + labels)
    axes = Figure().subplots()
    charts.draw_distributions(axes, oof, estimate(oof))
    assert len(axes.patches) == 2
    assert [line.get_xdata()[0] for line in axes.lines] == [AT_THRESHOLD]


def test_training_charts_have_one_for_every_loss_and_metric():
    fold = {"epoch": [1, 2, 3], "lr": 1.0, "train_ae": [3.0, 2.0, 1.0], "train_loss": [6.0, 5.0, 4.0]}
    fold |= {"val_loss": [np.nan, np.nan, 5.0], "val_auroc": [np.nan, np.nan, 0.8]}
    histories = {"0": pd.DataFrame(fold), "1": pd.DataFrame(fold)}
    assert charts.list_panels(histories) == ["loss", "ae", "auroc"]
    axes = Figure().subplots()
    charts.draw_history(axes, "loss", histories)
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 3, 1, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    assert charts.draw_training_charts({"0": pd.DataFrame()}) == []
