"""What the search for siblings joined: the least certain pairs beside each other, and what it judged by."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from defects.config import Config
from defects.config_data import DataConfig
from defects.data.registration import flip_image
from defects.data.sibling_report import EDGES, load_search, show_correlation
from defects.files import read_csv
from defects.report.drawing import headline, image_tile, png, shorten
from defects.writing import write_bytes

WIDTH = 15  # inches
COLUMNS = 4  # pairs per row
LINE = 4  # pixels between the photographs of a pair
JOINED, APART = 16, 12  # pairs shown at most
TICKS = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999]  # correlations
COMPARED_COLOUR, DIFFERENT_COLOUR = "#4c78a8", "#e45756"


def draw_siblings(config: Config, folds: pd.DataFrame) -> list[Path]:
    """Write siblings.png; returns its path, or nothing where the search is switched off.

    `folds` are the training rows of images.csv with their group.
    """
    page = config.dataset_dir / "siblings.png"
    search = load_search(config)
    if search is None:
        page.unlink(missing_ok=True)
        return []
    pairs = read_csv(config.dataset_dir / "pairs.csv", ["i", "j", "kind", "flip"], "src/split.py")
    joined = least_certain(pairs, folds)
    apart = pd.DataFrame(search["closest_apart"], columns=["i", "j", "correlation", "flip"])[:APART]
    images = folds.set_index("image_id", drop=False)
    write_bytes(page, png(partial(build_figure, config.data, images, search, joined, apart)))
    return [page]


def least_certain(pairs: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """The JOINED pairs that agree least among those that the search put into one group."""
    group = folds.set_index("image_id")["group"]
    is_joined = pairs["i"].map(group).to_numpy() == pairs["j"].map(group).to_numpy()
    joined = pairs[is_joined & (pairs["kind"] == "sibling")]
    return joined.sort_values("correlation", kind="stable")[:JOINED]


def build_figure(
    data: DataConfig, images: pd.DataFrame, search: dict[str, Any], joined: pd.DataFrame, apart: pd.DataFrame
) -> Figure:
    """The histogram, the pairs joined and the pairs kept apart; `images` are indexed by image_id."""
    sections = []
    for title, pairs in (
        ("kept together, the least certain first", joined),
        ("kept apart, the closest first", apart),
    ):
        rows = -(-len(pairs) // COLUMNS)
        tiles = [pair_tile(data, images, pair) for pair in pairs.to_dict("records")]
        if tiles:
            tallest = max(tile.shape[0] / tile.shape[1] for tile in tiles)
            height = 0.5 + rows * (0.45 + tallest * WIDTH / COLUMNS)  # inches
            sections.append((f"{data.name}: pairs {title}", pairs, tiles, height))
    heights = [4.2, *(height for _, _, _, height in sections)]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    chart, *grids = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_histogram(chart.subplots(), search)
    for grid, (title, pairs, tiles, _) in zip(grids, sections, strict=True):
        grid.suptitle(title, x=0.008, ha="left", weight="bold")
        draw_pairs(grid, pairs, tiles)
    return figure


def draw_histogram(axes: Axes, search: dict[str, Any]) -> None:
    """Correlations of proposed pairs and of different objects, on the scale of Fisher's transform."""
    for name, label, colour in (
        ("compared", "proposed pairs", COMPARED_COLOUR),
        ("different", "pairs of different objects (sample)", DIFFERENT_COLOUR),
    ):
        counts = np.array(search[name])
        axes.stairs(counts, EDGES, fill=True, color=colour, alpha=0.5, label=f"{label}: {counts.sum():,}")
    threshold = search["threshold"] if search["stricter"] is None else search["stricter"]
    axes.axvline(np.arctanh(min(threshold, np.tanh(EDGES[-1]))), color="black", label="threshold")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xticks(np.arctanh(TICKS), [f"{tick:g}" for tick in TICKS])
    axes.set(xlabel="correlation of the registered pictures", ylabel="pairs", xlim=(EDGES[0], EDGES[-1]))
    axes.legend()
    shown = show_correlation(threshold)
    detail = f"pairs above {shown} are taken to show one object"
    if search["kind"] == "alike":
        detail = f"pairs that stand out from all others, most above {shown}, are taken to show one object"
    headline(axes, "How alike photographs are", detail)


def draw_pairs(figure: SubFigure, pairs: pd.DataFrame, tiles: list[np.ndarray]) -> None:
    """A grid of the pairs' pictures with names and correlations."""
    rows = -(-len(pairs) // COLUMNS)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, pair, tile in zip(panels, pairs.to_dict("records"), tiles, strict=False):
        axes.imshow(tile)
        names = " | ".join(shorten(Path(pair[side]).stem) for side in ("i", "j"))
        axes.set_title(f"{names}\n{show_correlation(pair['correlation'])}", fontsize=8, pad=3)


def pair_tile(data: DataConfig, images: pd.DataFrame, pair: dict[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3]: two photographs, the second flipped as it lies on the first, a white line between.

    Beside each other, or one above the other where they are wide.
    """
    first = image_tile(data, images.loc[pair["i"]].to_dict())
    second = flip_image(image_tile(data, images.loc[pair["j"]].to_dict()), pair["flip"])
    axis = 0 if first.shape[1] > 2 * first.shape[0] else 1
    height, width = np.maximum(first.shape[:2], second.shape[:2])
    size = (height, width + LINE) if axis else (height + LINE, width)
    both = np.full((2, *size, 3), 255, np.uint8)
    for place, tile in enumerate((first, second)):
        both[place, : tile.shape[0], : tile.shape[1]] = tile
    return np.concatenate(list(both), axis=axis)
