"""Masks beside the truth, class by class: false alarms, the worst, usual and best ones by their Dice."""

from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import Config
from defects.config_data import DataConfig
from defects.report.drawing import CONTOUR, image_tile, outline_around, shorten
from defects.report.gallery import COLUMNS, GAP, LINE, MAP_CONTOUR, TITLE, WIDTH, Sheet
from defects.report.masks import held_masks

FEWEST = 4  # images of a kind, in as many rows as they need
CAPTION = 2 * LINE + 8  # pixels
NOTE = "yellow: around the true mask; cyan: around the one made, a little closer"

Tiles = dict[tuple[str, str], np.ndarray]  # by image and class


def draw_mask_galleries(config: Config, oof: pd.DataFrame, dice: pd.DataFrame) -> list[Sheet]:
    """A sheet for each class that has anything to show.

    `oof` are the classes' rows of oof.csv joined with images.csv, `dice` is masks.held_dice of them.
    """
    columns = columns_for(oof)
    parts = {name: choose(rows, max(FEWEST, columns)) for name, rows in dice.groupby("target", sort=False)}
    if not any(parts.values()):
        return []
    chosen = pd.concat([rows for found in parts.values() for rows in found.values()])
    tiles = _draw_tiles(config, oof, chosen, WIDTH // columns - GAP)
    return [_draw_sheet(name, found, tiles, columns) for name, found in parts.items() if found]


def columns_for(images: pd.DataFrame) -> int:
    """Two for long strips, COLUMNS for squares: all rows are about equally high."""
    return int(np.clip(round(COLUMNS / (images["width"] / images["height"]).median()), 2, COLUMNS))


def choose(rows: pd.DataFrame, count: int) -> dict[str, pd.DataFrame]:
    """Title -> up to `count` rows of masks.held_dice of one class, none of them twice."""
    alarms = rows[rows["empty"] & (rows["dice"] == 0)].sort_values("pixels", ascending=False)
    marked = rows[~rows["empty"]].sort_values(["dice", "pixels"], ascending=[True, False])
    worst, rest = marked[:count], marked[count:]
    best, between = rest[-count:][::-1], rest[:-count]
    median = marked["dice"].median()
    usual = between.loc[(between["dice"] - median).abs().sort_values(kind="stable").index[:count]]
    without, total = f"{rows['empty'].sum():,} images without it", f"of {len(marked):,} with it"
    found = {
        f"false alarms, the largest of {len(alarms):,} on {without}": alarms[:count],
        f"the lowest Dice {total}": worst,
        f"about the median Dice {total}, {median:.3f}": usual,
        f"the highest Dice {total}": best,
    }
    return {title: part for title, part in found.items() if len(part)}


def _draw_tiles(config: Config, oof: pd.DataFrame, chosen: pd.DataFrame, side: int) -> Tiles:
    wanted = set(zip(chosen["image_id"], chosen["target"], strict=True))
    rows = oof[oof["image_id"].isin(chosen["image_id"])]
    images = rows.drop_duplicates("image_id").set_index("image_id").to_dict("index")
    return {
        (each.image_id, each.target): mask_tile(config.data, images[each.image_id], each.truth, mask, side)
        for each, mask in held_masks(config, rows)
        if (each.image_id, each.target) in wanted
    }


def mask_tile(data: DataConfig, row: dict, truth: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w, 3] of a row of images.csv, longer side `side`, with both masks [H, W] outlined."""
    tile = image_tile(data, row, side, marked=False)
    outline_around(tile, truth, CONTOUR, gap=4)
    outline_around(tile, mask, MAP_CONTOUR, gap=2)  # where both agree, both lines are seen
    return tile


def _draw_sheet(name: str, parts: dict[str, pd.DataFrame], tiles: Tiles, columns: int) -> Sheet:
    sheet = Sheet()
    for title, rows in parts.items():
        sheet.add(TITLE)
        sheet.write(GAP, 14, f"Class {name}: {title}", fontsize=11, weight="bold")
        for start in range(0, len(rows), columns):
            _draw_row(sheet, rows[start : start + columns].to_dict("records"), tiles, columns)
    sheet.add(TITLE)
    sheet.write(GAP, GAP, NOTE)
    return sheet


def _draw_row(sheet: Sheet, rows: list[dict], tiles: Tiles, columns: int) -> None:
    drawn = [tiles[row["image_id"], row["target"]] for row in rows]
    strip = sheet.add(CAPTION + max(len(tile) for tile in drawn) + GAP)
    for place, (row, tile) in enumerate(zip(rows, drawn, strict=True)):
        left = GAP // 2 + place * (WIDTH // columns)
        strip[CAPTION : CAPTION + tile.shape[0], left : left + tile.shape[1]] = tile
        text = f"{shorten(Path(row['image_id']).stem)}\nclass {row['target']}, Dice {row['dice']:.3f}"
        sheet.write(left, 2, text, linespacing=1.1)
