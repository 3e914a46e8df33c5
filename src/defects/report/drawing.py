"""What all pages of pictures have in common: fonts, PNG, titles, image tiles with outlines."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import read_image, resize, resize_mask
from defects.data.labels import read_masks

Drawn = TypeVar("Drawn")

DPI = 100  # pixels per inch of a figure
TILE = 220  # pixels, longer side of an image on a page
CONTOUR = (255, 230, 0)  # yellow: visible on grey, rust and black
DEFECT, NORMAL = "#e45756", "#4c78a8"  # the two classes, on every page

BASE_FONT = "DejaVu Sans"  # comes with matplotlib
# The first choice for letters that it lacks: fonts with Chinese, Japanese and Korean ones.
WIDE_FONTS = ["Noto Sans CJK SC", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "WenQuanYi Zen Hei"]
BLANK_FONTS = ("Last Resort", "Adobe Blank", "AND-Regular")  # "have" every letter, as a box or as nothing
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning

_fallback_fonts: list[str] = []  # of this process, for letters that were missing so far
_reported_letters: set[str] = set()


def draw_with_fonts(draw: Callable[[], Drawn]) -> Drawn:
    """What `draw` returns, drawn in the style of all pages with installed fonts that have its letters.

    It is called again where the first fonts lack some. Says in one line what no installed font has.
    """
    drawn, missing = _draw_once(draw)
    found = [font for font in fonts_with(missing) if font not in _fallback_fonts]
    if found:
        _fallback_fonts.extend(found)
        drawn, missing = _draw_once(draw)
    unsaid = sorted(missing - _reported_letters)
    if unsaid:
        _reported_letters.update(unsaid)
        more = f" and {len(unsaid) - 3} more" if len(unsaid) > 3 else ""
        print(
            f"note: no installed font has the letters {', '.join(unsaid[:3])}{more}: they are drawn as "
            "boxes; install a font that has them, such as Noto Sans CJK"
        )
    return drawn


def fonts_with(letters: set[str]) -> list[str]:
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
    settings = {"font.family": fonts, "font.size": 9, "text.parse_math": False}  # `$` in a name is a `$`
    with mpl.rc_context(settings):
        yield


def png(build: Callable[[], Figure]) -> bytes:
    """The figure that `build` makes, as PNG, in the style of all pages."""

    def draw() -> bytes:
        buffer = io.BytesIO()
        build().savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    return draw_with_fonts(draw)


def headline(axes: Axes, text: str, detail: str) -> None:
    """A bold title and, below it, a line of detail; the lines to the right and above are taken away."""
    axes.set_title(text, loc="left", weight="bold", pad=20)
    axes.text(0, 1.02, detail, transform=axes.transAxes, va="bottom", color="#444444")
    axes.spines[["top", "right"]].set_visible(False)


def image_tile(data: DataConfig, row: dict[str, Any], side: int = TILE, marked: bool = True) -> np.ndarray:
    """uint8 [h, w, 3] of a row of images.csv, longer side `side` pixels; if `marked`, defects outlined."""
    root = resolve(data.root)
    image = read_image(root / row["path"], bits=data.bits)
    scale = side / max(image.shape[:2])
    size = tuple(max(3, round(scale * side)) for side in image.shape[:2])
    tile = np.ascontiguousarray(resize(image, size))
    mask = read_masks(row, root, []) if marked else None
    if mask is not None:
        outline_around(tile, mask[..., 0], CONTOUR)
    return tile


def outline_around(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], gap: int = 3) -> None:
    """Draw a line `gap` pixels around what `mask` [H, W], of any size, marks into `tile` [h, w, 3]."""
    mask, side = resize_mask(mask, tile.shape[:2]).astype(np.uint8), 2 * gap + 1
    around = cv2.dilate(mask, np.ones((side, side), np.uint8))  # or the line would cover a thin crack
    outline(tile, around, colour)


def outline(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw a line along the border of `mask` [h, w] into `tile` [h, w, 3]."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, lines, -1, colour, 2)


def caption(image_id: str, kind: str) -> str:
    """The file's name and, above it, the kind of defect where it is known."""
    return "\n".join(shorten(line) for line in (kind, Path(image_id).stem) if line)


def shorten(text: str) -> str:
    """Long names lose their middle: files of one folder often differ at the end only."""
    return text if len(text) <= 20 else f"{text[:9]}…{text[-10:]}"
