"""Images of a data set on a page: read small, with outlines of defects and the colours of anomaly maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.images import read_image, resize, resize_mask
from defects.data.labels import read_masks
from defects.data.roi import Roi, load_roi
from defects.evaluation.display_scales import (
    AT_THRESHOLD_HEAT,
    LIMIT_COLOUR,
    compute_heat,
    darken_outside,
    paint_heat,
    paint_scale,
)
from defects.evaluation.pixels import Maps, judged_cells
from defects.evaluation.thresholds import fit_map_limits
from defects.reports import html

TILE_PIXELS = 380**2  # area of an image: enough to be enlarged, some 25 kB as JPEG
THUMBNAIL_PIXELS = 220**2  # area of one of many
LONGEST_SIDE = 1200  # pixels
MOST_COMPARED = 12  # images of a card
MASK_COLOUR = (255, 230, 0)  # yellow: visible on grey, rust and black

Row = dict[str, Any]  # of images.csv
MapLimits = dict[str, tuple[float, float]]  # by fold: median of normal pixels, threshold


def read_tile(data: DataConfig, row: Row, pixels: int = TILE_PIXELS) -> np.ndarray:
    """uint8 [h, w, 3] of a row of images.csv, brought to an area of about `pixels`.

    What lies outside a region of interest is dark.
    """
    image = read_image(resolve(data.root) / row["path"], bits=data.bits)
    height, width = image.shape[:2]
    scale = min((pixels / (height * width)) ** 0.5, LONGEST_SIDE / max(height, width))
    size = (max(3, round(scale * height)), max(3, round(scale * width)))
    tile = np.ascontiguousarray(resize(image, size))
    return darken_outside(tile, read_inside(data, row, size))


def read_inside(data: DataConfig, row: Row, size: tuple[int, int]) -> np.ndarray | None:
    """bool of `size` (height, width): what of a row of images.csv is judged; None where all of it is."""
    roi = load_roi(data)
    return None if roi is None else roi.read(row["path"], size)


def mark_defects(tile: np.ndarray, data: DataConfig, row: Row, are_whole: bool = False) -> np.ndarray:
    """A copy of the tile with a yellow line around the defects, where a row of images.csv tells them.

    Around what counts of them in a region of interest, unless `are_whole`.
    """
    masks = read_masks(row, resolve(data.root), [])
    if masks is None:
        return tile.copy()
    inside = None if are_whole else read_inside(data, row, masks.shape[:2])
    mask = masks[..., 0] if inside is None else masks[..., 0] * inside
    return outline_around(tile, mask, MASK_COLOUR)


def draw_heat_tile(
    tile: np.ndarray,
    anomaly_map: np.ndarray,
    limits: tuple[float, float],
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 [h, w, 3]: the heat of a map over a tile, with a cyan line around what reaches the threshold.

    With `inside` bool [h, w] there alone.
    """
    heat = compute_heat(resize(anomaly_map.astype(np.float32), tile.shape[:2]), *limits)
    if inside is not None:
        heat = heat * inside
    return outline(paint_heat(tile, heat), heat >= AT_THRESHOLD_HEAT, LIMIT_COLOUR)


def outline_around(
    tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], gap: int = 3
) -> np.ndarray:
    """A copy of `tile` [h, w, 3] with a line `gap` pixels around what `mask` [H, W], of any size, marks."""
    side = 2 * gap + 1
    marked = resize_mask(mask, tile.shape[:2]).astype(np.uint8)
    around = cv2.dilate(marked, np.ones((side, side), np.uint8))  # or the line would cover a thin crack
    return outline(tile, around, colour)


def outline(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A copy of `tile` [h, w, 3] with a line along the border of `mask` [h, w]."""
    drawn = tile.copy()
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, lines, -1, colour, 2)
    return drawn


def fit_limits(rows: pd.DataFrame, maps: Mapping[str, Maps], fpr: float, roi: Roi | None = None) -> MapLimits:
    """Median of normal pixels and threshold of the maps of each fold, as an export of the fold has them.

    `rows` are out-of-fold ones (image_id, path, label, fold), `fpr` is threshold.fpr. Folds without maps are
    left out.
    """
    limits = {}
    for fold, part in rows.groupby("fold"):
        fold_maps = maps[fold]
        mapped = part[part["image_id"].isin(set(fold_maps))]
        normal = mapped[mapped["label"] == 0]
        chosen = mapped if normal.empty else normal
        if len(chosen):
            planes = (
                judged_cells(fold_maps[row["image_id"]][None], roi, row.get("path"))
                for row in chosen.to_dict("records")
            )
            medians, thresholds = fit_map_limits(planes, fpr, fold_maps.segment, has_normal=len(normal) > 0)
            limits[fold] = (medians[0], thresholds[0])
    return limits


def draw_legend() -> html.Legend:
    """The scale of heat maps on all pages."""
    return html.Legend(
        html.embed_jpeg(paint_scale(520, 12), "colours of the heat maps, from normal to twice the threshold"),
        ("0: like normal pixels", "50: threshold, outlined in cyan", "100: twice as far, or more"),
        "Heat of an anomaly map, on one scale for all images: 0 is the median of the normal pixels out of "
        "fold. The threshold is the one from which an exported model marks a region.",
    )


def draw_side_by_side(data: DataConfig, rows: list[Row], captions: list[str], title: str) -> html.Card:
    """Images of a data set that are to be compared; of many the first MOST_COMPARED."""
    compared = rows[:MOST_COMPARED]
    names = [Path(row["path"]).name for row in compared]
    tiles = [read_tile(data, row, THUMBNAIL_PIXELS) for row in compared]
    left_out = len(rows) - len(compared)
    facts = (html.Fact(f"and {left_out:,} more"),) if left_out else ()
    return build_side_by_side(title, names, tiles, captions[: len(compared)], facts)


def build_side_by_side(
    title: str,
    names: list[str],
    tiles: list[np.ndarray],
    captions: list[str],
    facts: tuple[html.Fact, ...] = (),
) -> html.Card:
    """Images uint8 [h, w, 3] in a row, above their names and captions; `facts` are about all of them."""
    pictures = []
    for name, tile, caption in zip(names, tiles, captions, strict=True):
        pictures.append(html.embed_jpeg(tile, name, f"{name}: {caption}" if caption else name))
    return html.Card(title, tuple(pictures), facts)
