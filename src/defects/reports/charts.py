"""Charts of all pages: their style, the fonts for the letters of any name, SVG and PNG.

Charts on pages are SVG whose texts stay texts: they can be searched and are sharp at any size. matplotlib
lays them out with installed fonts, the browser draws them with its own.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defects.messages import shorten_names

Drawn = TypeVar("Drawn")

SVG_METADATA = ("Creator", "Date", "Format", "Type")  # left out
DPI = 100  # pixels per inch of a PNG, and of what is drawn as pixels within an SVG
LONGEST_NAME = 24  # letters
CHART_INCHES = (6.2, 3.9)  # of a chart that stands beside others
DEFECT_COLOUR, NORMAL_COLOUR, TEST_COLOUR = "#e45756", "#4c78a8", "#8a8a8a"  # on every page

GREY = "#5f6773"  # of axes and details

BASE_FONT = "DejaVu Sans"  # comes with matplotlib
# The first choice for letters that it lacks: fonts with Chinese, Japanese and Korean ones.
WIDE_FONTS = ["Noto Sans CJK SC", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "WenQuanYi Zen Hei"]
BLANK_FONTS = ("Last Resort", "Adobe Blank", "AND-Regular")  # "have" every letter, as a box or as nothing
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning

_fallback_fonts: list[str] = []  # of this process, for letters that were missing so far
_reported_letters: set[str] = set()


def draw_with_fonts(draw: Callable[[], Drawn]) -> tuple[Drawn, set[str]]:
    """What `draw` returns, in the style of all pages, and the letters that no installed font has.

    It is called again with other installed fonts where the first ones lack letters.
    """
    drawn, missing = _draw_once(draw)
    fonts = [font for font in find_fonts(missing) if font not in _fallback_fonts]
    if fonts:
        _fallback_fonts.extend(fonts)
        drawn, missing = _draw_once(draw)
    return drawn, missing


def find_fonts(letters: set[str]) -> list[str]:
    """Installed font families that have the letters between them, or as many of them as any has."""
    if not letters:
        return []
    entries = sorted(
        font_manager.fontManager.ttflist, key=lambda font: (font.name not in WIDE_FONTS, font.name)
    )
    known: dict[str, set[str]] = {}
    for entry in entries:
        if entry.name in known or entry.name.startswith(BLANK_FONTS):
            continue
        with suppress(RuntimeError, OSError):  # fonts of pictures, and files that are gone
            charmap = font_manager.get_font(entry.fname).get_charmap()
            known[entry.name] = {letter for letter in letters if ord(letter) in charmap}
    fonts, left = [], set(letters)
    while left and known:
        best = max(known, key=lambda name: len(known[name] & left))
        if not known[best] & left:
            break
        left -= known.pop(best)
        fonts.append(best)
    return fonts


def _draw_once(draw: Callable[[], Drawn]) -> tuple[Drawn, set[str]]:
    """What it returns, and the letters that no font in use has."""
    with _page_style(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = draw()
    missing = set()
    for warning in caught:
        glyph = MISSING_GLYPH.match(str(warning.message))
        if glyph:
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return drawn, missing


@contextmanager
def _page_style() -> Iterator[None]:
    """Fonts of all pages, to be in force while a figure is built and drawn."""
    wide = [font for font in WIDE_FONTS if font in font_manager.get_font_names()]
    fonts = [BASE_FONT, *wide, *_fallback_fonts]
    settings = {
        "font.family": fonts,
        "font.size": 9,
        "text.parse_math": False,  # `$` in a name is a `$`
        "axes.edgecolor": GREY,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
    }
    with mpl.rc_context(settings):
        yield


def draw_png(build: Callable[[], Figure]) -> bytes:
    """The figure that `build` makes, as PNG. Says in one line which letters no installed font has."""

    def draw() -> bytes:
        buffer = io.BytesIO()
        build().savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    content, missing = draw_with_fonts(draw)
    unsaid = sorted(missing - _reported_letters)
    if unsaid:
        _reported_letters.update(unsaid)
        print(
            f"note: no installed font has the letters {shorten_names(unsaid)}: they are drawn as boxes; "
            "install a font that has them, such as Noto Sans CJK"
        )
    return content


def draw_svg(build: Callable[[], Figure]) -> str:
    """The figure that `build` makes, as an SVG element to be put into a page; equal figures, equal texts."""

    def draw() -> str:
        buffer = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chart"}):
            metadata = dict.fromkeys(SVG_METADATA)
            build().savefig(buffer, format="svg", dpi=DPI, transparent=True, metadata=metadata)
        return buffer.getvalue()

    text, _ = draw_with_fonts(draw)
    element = text[text.index("<svg") :]
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)  # HTML knows them
    # Ids of groups are the same in every chart, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", element)


def shorten_name(text: str) -> str:
    """Long names lose their middle: files of one folder often differ at the end only."""
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[: half - 1]}…{text[-half:]}"


def draw_panel(panel: Callable[[Axes], None]) -> str:
    """One chart of the common size, as draw_svg."""

    def build() -> Figure:
        figure = Figure(figsize=CHART_INCHES, layout="constrained")
        panel(figure.subplots())
        return figure

    return draw_svg(build)


def add_headline(axes: Axes, text: str, detail: str) -> None:
    """A bold title and, below it, a line of detail; the lines to the right and above are taken away."""
    axes.set_title(text, loc="left", weight="bold", pad=20)
    axes.text(0, 1.02, detail, transform=axes.transAxes, va="bottom", color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
