"""Letters of all scripts in charts: a font that has them is looked for, or it is said that none does."""

import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

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
