"""One HTML page in one file: pictures and charts are part of it, nothing is fetched.

A page is a list of sections, a section a list of blocks; `build_page` renders them with templates/page.html.
All texts are escaped. Pictures are figures with a caption that can be searched and selected; a click enlarges
one, by a few lines of JavaScript in the page.
"""

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import cv2
import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from defects.files import write_bytes

TEMPLATES = Path(__file__).with_name("templates")
JPEG_QUALITY = 80
WIDE_ASPECT = 2.0  # width to height from which the pictures of a card lie below each other
DISPLAY_PIXELS = 168  # side of a square with the area that a picture takes up in a grid
SMALL_DISPLAY_PIXELS = 112  # of pictures of which there are many in a card
MOST_ACROSS = 6  # pictures in a row of a card


@dataclass(frozen=True)
class Picture:
    """An image: a data URI, its size in pixels, what it shows, and a caption of its own."""

    source: str
    width: int
    height: int
    alt: str
    caption: str = ""
    is_wrong: bool = False  # the caption is about a wrong decision


@dataclass(frozen=True)
class Fact:
    """A line below a picture."""

    text: str
    is_wrong: bool = False


@dataclass(frozen=True)
class Card:
    """What belongs to one image: its name, lines of text, pictures. The enlarged view also has `hint`."""

    title: str
    pictures: tuple[Picture, ...]
    facts: tuple[Fact, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Lines:
    """Short statements, a line each."""

    kind: ClassVar[str] = "lines"
    lines: list[str]


@dataclass(frozen=True)
class Table:
    """`values` are texts; the index stands in bold to the left."""

    kind: ClassVar[str] = "table"
    values: pd.DataFrame


@dataclass(frozen=True)
class Charts:
    """SVG elements, as charts.draw_svg makes them; as many in a row as fit."""

    kind: ClassVar[str] = "charts"
    drawings: list[str]
    width: int | None = 400  # CSS pixels of a chart at least; None: that of the page


@dataclass(frozen=True)
class Cards:
    """A grid of images under a heading; `is_alert` marks what needs attention."""

    kind: ClassVar[str] = "cards"
    title: str
    cards: list[Card]
    is_alert: bool = False
    side: int = DISPLAY_PIXELS
    most_across: int = MOST_ACROSS

    @property
    def aspect(self) -> float:
        """Median width to height of the pictures."""
        ratios = [picture.width / picture.height for card in self.cards for picture in card.pictures]
        return float(np.clip(np.median(ratios), 0.4, 8))

    @property
    def picture_width(self) -> int:
        """CSS pixels: pictures of all shapes take up about the same area."""
        return round(self.side * self.aspect**0.5)

    @property
    def across(self) -> int:
        """Pictures beside each other in a card."""
        if self.aspect >= WIDE_ASPECT:
            return 1
        most = max(len(card.pictures) for card in self.cards)
        rows = -(-most // self.most_across)
        return -(-most // rows)


@dataclass(frozen=True)
class Legend:
    """What the colours of heat maps stand for."""

    kind: ClassVar[str] = "legend"
    picture: Picture
    labels: tuple[str, str, str]  # at the left, in the middle, at the right
    note: str


Block = Text | Lines | Table | Charts | Cards | Legend


@dataclass(frozen=True)
class PageSection:
    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class KeyFigure:
    name: str
    value: str
    note: str


def build_page(
    title: str, subtitle: str, sections: list[PageSection], key_figures: list[KeyFigure] | None = None
) -> str:
    """The whole document."""
    return _load_template().render(
        title=title,
        subtitle=subtitle,
        key_figures=key_figures or [],
        sections=[section for section in sections if section.blocks],
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "enlarge.js").read_text(encoding="utf-8")),
    )


def write_page(path: Path, page: str) -> None:
    write_bytes(path, page.encode())


@cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["table"] = render_table
    environment.filters["svg"] = Markup
    return environment.get_template("page.html")


def render_table(values: pd.DataFrame) -> Markup:
    """HTML of a table of texts, which are escaped."""
    headed = values.rename_axis(index=None, columns=values.index.name)  # one line of headings
    return Markup(headed.to_html(border=0, escape=True))


def embed_jpeg(image: np.ndarray, alt: str, caption: str = "", is_wrong: bool = False) -> Picture:
    """A picture of RGB uint8 [H, W, 3]; full colour resolution, since outlines are thin."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
    source = f"data:image/jpeg;base64,{b64encode(content).decode()}"
    height, width = image.shape[:2]
    return Picture(source, width, height, alt, caption, is_wrong)


def format_number(value: float | None, form: str = ".3f") -> str:
    """The number in `form`, a dash where there is none."""
    return "–" if value is None or pd.isna(value) else format(value, form)


def build_markdown_table(table: pd.DataFrame) -> str:
    """A table of texts as Markdown."""
    rows = [[table.index.name, *table.columns], [":--", *["--:"] * len(table.columns)]]
    for name, cells in zip(table.index, table.to_numpy().tolist(), strict=True):
        rows.append([name, *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
