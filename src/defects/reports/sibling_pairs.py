"""What the search for siblings judged by, and the least certain pairs: a section of the data report."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from defects.config import Config
from defects.config_data import DataConfig
from defects.data.fold_files import EDGES, format_correlation, load_search
from defects.data.registration import flip_image
from defects.files import read_csv
from defects.reports.charts import DEFECT_COLOUR, NORMAL_COLOUR, add_headline, draw_panel
from defects.reports.figures import THUMBNAIL_PIXELS, build_side_by_side, read_tile
from defects.reports.html import Block, Card, Cards, Charts, Fact

JOINED, APART = 16, 12  # pairs shown at most
TICKS = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999]  # correlations


def draw_siblings(config: Config, folds: pd.DataFrame) -> list[Block]:
    """The chart, the pairs joined and the pairs kept apart; nothing where the search is switched off.

    `folds` are the training rows of images.csv with their group.
    """
    search = load_search(config)
    if search is None:
        return []
    pairs = read_csv(config.dataset_dir / "pairs.csv", ["i", "j", "kind", "flip"], "src/split.py")
    joined = choose_least_certain(pairs, folds)
    apart = pd.DataFrame(search["closest_apart"], columns=["i", "j", "correlation", "flip"])[:APART]
    images = folds.set_index("image_id", drop=False)
    blocks: list[Block] = [Charts([draw_panel(partial(draw_histogram, search=search))])]
    for title, shown in (
        ("Kept together, the least certain first", joined),
        ("Kept apart, the closest first", apart),
    ):
        if len(shown):
            cards = [draw_pair(config.data, images, pair) for pair in shown.to_dict("records")]
            blocks.append(Cards(title, cards))
    return blocks


def choose_least_certain(pairs: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """The JOINED pairs that agree least among those that the search put into one group."""
    group = folds.set_index("image_id")["group"]
    is_joined = pairs["i"].map(group).to_numpy() == pairs["j"].map(group).to_numpy()
    joined = pairs[is_joined & (pairs["kind"] == "sibling")]
    return joined.sort_values("correlation", kind="stable")[:JOINED]


def draw_histogram(axes: Axes, search: dict[str, Any]) -> None:
    """Correlations of proposed pairs and of different objects, on the scale of Fisher's transform."""
    for name, label, colour in (
        ("compared", "proposed pairs", NORMAL_COLOUR),
        ("different", "pairs of different objects (sample)", DEFECT_COLOUR),
    ):
        counts = np.array(search[name])
        axes.stairs(counts, EDGES, fill=True, color=colour, alpha=0.5, label=f"{label}: {counts.sum():,}")
    threshold = search["threshold"] if search["stricter"] is None else search["stricter"]
    axes.axvline(np.arctanh(min(threshold, np.tanh(EDGES[-1]))), color="black", label="threshold")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xticks(np.arctanh(TICKS), [f"{tick:g}" for tick in TICKS], rotation=45)
    axes.set(xlabel="correlation of the registered pictures", ylabel="pairs", xlim=(EDGES[0], EDGES[-1]))
    axes.legend()
    shown = format_correlation(threshold)
    detail = f"pairs above {shown} are taken to show one object"
    if search["kind"] == "alike":
        detail = f"pairs that stand out, most above {shown}, are taken to show one object"
    add_headline(axes, "How alike photographs are", detail)


def draw_pair(data: DataConfig, images: pd.DataFrame, pair: dict[str, Any]) -> Card:
    """Two photographs beside each other, the second flipped as it lies on the first."""
    names = [Path(pair[side]).name for side in ("i", "j")]
    tiles = [read_tile(data, images.loc[pair[side]].to_dict(), THUMBNAIL_PIXELS) for side in ("i", "j")]
    tiles[1] = np.ascontiguousarray(flip_image(tiles[1], pair["flip"]))
    title = f"correlation {format_correlation(pair['correlation'])}"
    facts = (Fact(f"the second one flipped: {pair['flip']}"),) if pair["flip"] != "none" else ()
    return build_side_by_side(title, names, tiles, ["", ""], facts)
