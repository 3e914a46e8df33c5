"""What all pages of pictures have in common: fonts, PNG, titles, image tiles with outlines."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import read_image, resize, resize_mask
from defects.data.labels import read_masks

DPI = 100  # pixels per inch of a figure
TILE = 220  # pixels, longer side of an image on a page
CONTOUR = (255, 230, 0)  # yellow: visible on grey, rust and black
DEFECT, NORMAL = "#e45756", "#4c78a8"  # the two classes, on every page

# Fonts with Chinese, Japanese and Korean letters, for file names; those installed are used.
WIDE_FONTS = ["Noto Sans CJK SC", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "WenQuanYi Zen Hei"]


@contextmanager
def page_style() -> Iterator[None]:
    """Fonts of all pages, to be in force while a figure is built and drawn."""
    fonts = ["DejaVu Sans", *(font for font in WIDE_FONTS if font in get_font_names())]
    settings = {"font.family": fonts, "font.size": 9, "text.parse_math": False}  # `$` in a name is a `$`
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that no font has is drawn as a box
        yield


def png(build: Callable[[], Figure]) -> bytes:
    """The figure that `build` makes, as PNG, in the style of all pages."""
    buffer = io.BytesIO()
    with page_style():
        build().savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


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
