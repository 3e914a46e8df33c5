"""Rows of pictures for an ensemble: an image, then the heat map of each member, with its probability."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.config_data import DataConfig
from defects.report.drawing import DEFECT, caption, image_tile, shorten
from defects.report.gallery import CAPTION, COLUMNS, GAP, LINE, WIDTH, Scales, Sheet, heat_tile
from defects.scoring.pixels import Maps

LARGEST = 260  # pixels, longer side of a picture
Row = dict[str, Any]  # of images.csv, with label and fold


@dataclass
class Member:
    """An experiment, or the blend: scores (log-odds) and what it calls defective, by image_id; its maps."""

    name: str
    scores: pd.Series
    called: pd.Series
    maps: dict[str, Maps]  # by fold
    scales: Scales

    @property
    def has_maps(self) -> bool:
        return any(len(maps) for maps in self.maps.values())

    def probability(self, row: Row) -> str:
        return f"{expit(self.scores[row['image_id']]):.3g}"

    def colour(self, row: Row) -> str:
        """Red where it decides wrongly."""
        return "black" if self.called[row["image_id"]] == (row["label"] == 1) else DEFECT


class Cell(NamedTuple):
    """A picture, if there is one, and texts: pixels below the top of the row, text, colour."""

    picture: np.ndarray | None
    texts: list[tuple[int, str, str]]


def draw_rows(data: DataConfig, rows: pd.DataFrame, blend: Member, members: list[Member]) -> Sheet:
    """`rows` of images.csv with label and fold, in the order to be shown.

    Members without maps are listed beside the image. As many images stand side by side as there is room for.
    """
    width = 1 + any(not member.has_maps for member in members) + sum(member.has_maps for member in members)
    beside = max(1, COLUMNS // width)
    side = min(LARGEST, WIDTH // (beside * width) - GAP)
    cells = [cell for row in rows.to_dict("records") for cell in _cells(data, row, blend, members, side)]
    sheet = Sheet()
    for start in range(0, len(cells), beside * width):
        _draw(sheet, cells[start : start + beside * width], side + GAP)
    return sheet


def _cells(data: DataConfig, row: Row, blend: Member, members: list[Member], side: int) -> list[Cell]:
    text = f"{caption(row['image_id'], row['kind'])}\n{blend.probability(row)}, fold {row['fold']}"
    cells = [Cell(image_tile(data, row, side), [_above(text, blend.colour(row))])]
    listed = [member for member in members if not member.has_maps]
    if listed:
        step = 2 * LINE + GAP
        texts = [(CAPTION + k * step, *_says(member, row)) for k, member in enumerate(listed)]
        cells.append(Cell(None, texts))
    plain = image_tile(data, row, side, marked=False)
    for member in members:
        if member.has_maps:
            cells.append(Cell(_heat(member, row, plain), [_above(*_says(member, row))]))
    return cells


def _heat(member: Member, row: Row, plain: np.ndarray) -> np.ndarray | None:
    maps = member.maps[row["fold"]]
    if row["image_id"] not in maps:
        return None
    return heat_tile(plain, maps[row["image_id"]], member.scales[row["fold"]])


def _says(member: Member, row: Row) -> tuple[str, str]:
    return f"{shorten(member.name)}\n{member.probability(row)}", member.colour(row)


def _above(text: str, colour: str) -> tuple[int, str, str]:
    return CAPTION - 5 - LINE * (text.count("\n") + 1), text, colour


def _draw(sheet: Sheet, cells: list[Cell], step: int) -> None:
    height = max(len(cell.picture) for cell in cells if cell.picture is not None)
    lowest = max(y for cell in cells for y, _, _ in cell.texts) + 2 * LINE
    strip = sheet.add(max(CAPTION + height, lowest) + 2 * GAP)
    for number, (picture, texts) in enumerate(cells):
        x = GAP + number * step
        if picture is not None:
            strip[CAPTION : CAPTION + picture.shape[0], x : x + picture.shape[1]] = picture
        for y, text, colour in texts:
            sheet.write(x, y, text, color=colour, linespacing=1.1)
