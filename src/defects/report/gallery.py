"""Images sorted by score, with masks, heat maps and their contours.

All maps of a fold are shown on one scale: 0 is the median of its held-out normal pixels, 1 (the contour)
their PIXEL_QUANTILE. A scale of each image's own would paint a red spot on every good part.
"""

from dataclasses import dataclass, field
from functools import partial

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.special import expit

from defects.config_data import DataConfig
from defects.data.images import resize
from defects.report.drawing import DEFECT, DPI, caption, draw_with_fonts, image_tile, outline
from defects.scoring.pixels import CellCounts, Maps

PIXEL_QUANTILE = 0.99  # of the held-out normal pixels
HIGHEST = 3.0  # end of the colours: three times as far from the median as the contour
HEAT = mpl.colormaps["inferno"]
OPACITY = 0.75  # of the colours over the image, from the contour on; below it they fade out
MAP_CONTOUR = (0, 255, 255)  # cyan: far from the yellow of the masks

WIDTH, SIDE, GAP = 1660, 196, 6  # pixels: of the page, longer side of an image, beside an image
COLUMNS = 8  # tiles in a row: an image, or an image and its map
WORST = 3  # rows of the worst images of a class; of the clearest there is one
TITLE, CAPTION, LINE, BAR = 40, 54, 15, 20  # pixels: heights of texts and of the explained colours
TITLES = {
    0: ("Normal images: the highest scores", "Normal images: the lowest scores"),
    1: ("Defects: the lowest scores", "Defects: the highest scores"),
}

Scales = dict[str, tuple[float, float]]


@dataclass
class Sheet:
    """Strips of pictures below each other, and texts on them, placed by the pixel.

    A panel of matplotlib for each picture would take seconds to lay out.
    """

    strips: list[np.ndarray] = field(default_factory=list)
    texts: list[tuple[float, float, str, dict]] = field(default_factory=list)  # x and y of the top, pixels

    def add(self, height: int) -> np.ndarray:
        """A new white strip, uint8 [height, WIDTH, 3], to be drawn into."""
        self.strips.append(np.full((height, WIDTH, 3), 255, np.uint8))
        return self.strips[-1]

    def write(self, x: float, y: float, text: str, **style) -> None:
        """At x and y pixels from the upper left corner of the last strip."""
        above = sum(len(strip) for strip in self.strips[:-1])
        self.texts.append((x, above + y, text, style))

    def png(self) -> bytes:
        """Texts are drawn on white and laid over the pictures: matplotlib would resample these."""
        page = np.vstack(self.strips)
        page = np.minimum(page, draw_with_fonts(partial(self._draw_texts, len(page))))
        return cv2.imencode(".png", page[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()

    def _draw_texts(self, height: int) -> np.ndarray:
        """uint8 [height, WIDTH, 3]: black on white."""
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        for x, y, text, style in self.texts:
            figure.text(x / WIDTH, 1 - y / height, text, va="top", **style)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


def map_scales(oof: pd.DataFrame, maps: dict[str, Maps]) -> Scales:
    """Median and PIXEL_QUANTILE of the held-out normal pixels (of all, where none is normal), by fold."""
    scales = {}
    for fold, rows in oof.groupby("fold"):
        shown = rows[rows["image_id"].isin(set(maps[fold]))]
        normal = shown[shown["label"] == 0] if (shown["label"] == 0).any() else shown
        if len(normal):
            counts = CellCounts()
            for image_id in normal["image_id"]:
                counts.add(maps[fold][image_id])
            scales[fold] = (counts.quantile(0.5), counts.quantile(PIXEL_QUANTILE))
    return scales


def draw_gallery(
    data: DataConfig, rows: pd.DataFrame, maps: dict[str, Maps], scales: Scales, threshold: float
) -> Sheet:
    """The worst images of one class, and its clearest.

    `rows` (label, score, fold, and those of images.csv) are of one label. Captions of images on the wrong
    side of `threshold`, which like `score` is in log-odds, are red.
    """
    label = int(rows["label"].iloc[0])
    ordered = rows.sort_values("score", ascending=label == 1)
    ordered = ordered.assign(wrong=(ordered["score"] >= threshold) != (label == 1))
    columns = COLUMNS // 2 if scales else COLUMNS
    worst, others = ordered[: WORST * columns], ordered[WORST * columns :]
    sheet = Sheet()
    for title, part in zip(TITLES[label], (worst, others[-columns:][::-1]), strict=True):
        if len(part):
            sheet.add(TITLE)
            sheet.write(GAP, 14, f"{title} ({len(part)} of {len(rows):,})", fontsize=11, weight="bold")
        for start in range(0, len(part), columns):
            _draw_row(sheet, data, part[start : start + columns], maps, scales)
    if scales:
        _draw_scale(sheet)
    return sheet


def _draw_row(
    sheet: Sheet, data: DataConfig, rows: pd.DataFrame, maps: dict[str, Maps], scales: Scales
) -> None:
    strip = sheet.add(CAPTION + SIDE + GAP)
    step = WIDTH // (COLUMNS // 2 if scales else COLUMNS)
    for place, row in enumerate(rows.to_dict("records")):
        tiles, fold = [image_tile(data, row, SIDE)], row["fold"]
        if row["image_id"] in maps[fold]:
            plain = image_tile(data, row, SIDE, marked=False)
            tiles.append(heat_tile(plain, maps[fold][row["image_id"]], scales[fold]))
        for number, tile in enumerate(tiles):
            left = GAP + place * step + number * (tile.shape[1] + GAP)
            strip[CAPTION : CAPTION + tile.shape[0], left : left + tile.shape[1]] = tile
        text = f"{caption(row['image_id'], row['kind'])}\n{expit(row['score']):.3g}, fold {fold}"
        y = CAPTION - 5 - LINE * (text.count("\n") + 1)
        style = {"linespacing": 1.1, "color": DEFECT if row["wrong"] else "black"}
        sheet.write(GAP + place * step, y, text, **style)


def heat_tile(tile: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """uint8 [h, w, 3]: the map over the image, its contour where it exceeds 1 on the `scale` of its fold."""
    median, cut = scale
    spread = max(cut - median, 1e-6 * abs(cut), 1e-12)  # the maps of a fold may be constant
    values = (resize(anomaly_map.astype(np.float32), tile.shape[:2]) - median) / spread
    heat = _colour(tile, values)
    outline(heat, values > 1, MAP_CONTOUR)
    return heat


def _colour(tile: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3]: the colours of `values` [h, w] over the `tile`, which shows where they are low."""
    opacity = OPACITY * np.clip(values, 0, 1)[..., None]
    colours = 255 * HEAT(np.clip(values / HIGHEST, 0, 1))[..., :3]
    return (opacity * colours + (1 - opacity) * tile).astype(np.uint8)


def _draw_scale(sheet: Sheet) -> None:
    """The colours over a grey image, and what they stand for."""
    width = WIDTH // 3
    grey, values = np.full((BAR, width, 3), 128), np.linspace(0, HIGHEST, width)
    sheet.add(TITLE)[-BAR:, GAP : GAP + width] = _colour(grey, np.tile(values, (BAR, 1)))
    sheet.add(CAPTION)
    labels = {
        0: "0: median",
        1: f"1: {PIXEL_QUANTILE:.0%} quantile, contour",
        HIGHEST: f"{HIGHEST:g} and more",
    }
    for value, text in labels.items():
        align = "left" if value == 0 else "right" if value == HIGHEST else "center"
        sheet.write(GAP + width * value / HIGHEST, 4, text, ha=align)
    note = "of the held-out normal pixels of a fold (of all, if no image is normal); the same for all images"
    sheet.write(GAP, 4 + LINE + 4, note)
