"""One page about a data set, to be looked at before anything is trained on it.

Its panels compare what must not differ between the classes, or between training and test: sizes, grey
levels. Where they do differ, a detector will learn that difference instead of the defects.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator
from tqdm import tqdm

from defects.config import Config, resolve
from defects.config_data import DataConfig
from defects.data.images import read_image
from defects.data.labels import is_marked, read_masks
from defects.data.prepare import load_images
from defects.data.split import load_folds
from defects.report.contact_sheet import draw_groups
from defects.report.drawing import DEFECT, NORMAL, caption, headline, image_tile, png, shorten
from defects.report.sibling_page import draw_siblings
from defects.writing import write_bytes

COLOURS = {"train defect": DEFECT, "train normal": NORMAL, "test": "#8a8a8a"}  # of the parts
SAMPLE_ROWS = {"train defect": 2, "train normal": 2, "test": 1}  # rows of sample images on the page
COLUMNS = 8  # sample images per row
MEASURED = 650  # images of each part whose pixels are read: below 2,000 in all
KINDS = 8  # kinds of defect listed one by one


def explore(config: Config) -> list[Path]:
    """Write explore.png, groups.png and siblings.png into the data set's folder; returns their paths."""
    root, folder = resolve(config.data.root), config.dataset_dir
    images, folds = load_images(config), load_folds(config)
    images = images.assign(part=part(images))
    page, sheet = folder / "explore.png", folder / "groups.png"
    write_bytes(page, png(partial(build_figure, config.data, images, folds)))
    classes = folds["label"].map({0: "normal", 1: "defect"})
    paths = [root / path for path in folds["path"]]
    draw_groups(paths, classes, folds["group"], sheet, bits=config.data.bits)
    return [page, sheet, *draw_siblings(config, folds)]


def part(images: pd.DataFrame) -> pd.Categorical:
    """[N], a key of COLOURS and in their order: where each image of images.csv belongs."""
    train = np.where(images["label"].eq(1).fillna(False), "train defect", "train normal")
    return pd.Categorical(np.where(images["split"] == "test", "test", train), list(COLOURS), ordered=True)


def build_figure(data: DataConfig, images: pd.DataFrame, folds: pd.DataFrame) -> Figure:
    """Six charts, and below them a grid of sample images for each part."""
    rows = sample_rows(images)
    heights = [7.6, *(0.35 + 2.05 * count for count in rows.values())]  # inches
    figure = Figure(figsize=(15, 0.4 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    test = int((images["part"] == "test").sum())
    counts = f"{len(images) - test:,} training images, {f'{test:,}' if test else 'no'} test images"
    figure.suptitle(f"{data.name}: {counts}", fontsize=15, weight="bold")
    charts, *grids = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_charts(charts, images, folds, measure(data, images))
    for grid, (key, count) in zip(grids, rows.items(), strict=True):
        draw_samples(grid, data, images[images["part"] == key], count)
    return figure


def sample_rows(images: pd.DataFrame) -> dict[str, int]:
    """Rows of samples for each part that has images, no more than they fill."""
    counts = images["part"].value_counts()
    return {
        key: min(rows, -(-int(counts[key]) // COLUMNS)) for key, rows in SAMPLE_ROWS.items() if counts[key]
    }


# --- what is drawn ---


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows: a random one of each equal stretch of the table, the same ones every time.

    Every tenth row would show one texture only of a data set whose ten textures take turns.
    """
    bounds = np.linspace(0, len(table), min(count, len(table)) + 1).astype(int)
    return table.iloc[np.random.default_rng(0).integers(bounds[:-1], bounds[1:])]


def measure(data: DataConfig, images: pd.DataFrame) -> pd.DataFrame:
    """Of at most MEASURED images of each part: part, mean and deviation (grey levels), area (per cent)."""
    sample = pd.concat([spread(rows, MEASURED) for _, rows in images.groupby("part", observed=True)])
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        jobs = pool.map(partial(_measure_one, data), sample.to_dict("records"))
        facts = list(tqdm(jobs, "measuring images", len(sample), leave=False, disable=None))
    facts = pd.DataFrame(facts, columns=["mean", "deviation", "area"])
    return facts.assign(part=sample["part"].array)


def _measure_one(data: DataConfig, row: dict[str, Any]) -> tuple[float, float, float]:
    root = resolve(data.root)
    image = read_image(root / row["path"], bits=data.bits)
    mean, deviation = cv2.meanStdDev(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    mask = read_masks(row, root, [])
    area = np.nan if mask is None else 100 * float(mask.mean())
    return mean.item(), deviation.item(), area


def class_counts(images: pd.DataFrame) -> pd.Series:
    """Images of each part; after the defects, of each kind of defect where kinds are known."""
    parts = images["part"].value_counts(sort=False).rename(index=str)
    kinds = images.loc[(images["part"] == "train defect") & (images["kind"] != ""), "kind"].value_counts()
    if len(kinds) > KINDS:
        rest = kinds.iloc[KINDS - 1 :]
        kinds = pd.concat([kinds.iloc[: KINDS - 1], pd.Series({f"{len(rest)} other kinds": rest.sum()})])
    kinds.index = "defect: " + kinds.index.astype(str).map(shorten)
    return pd.concat([parts[["train defect"]], kinds, parts[["train normal", "test"]]])


def group_sizes(folds: pd.DataFrame) -> pd.Series:
    """Number of groups by how many images they hold."""
    bounds = [0, 1, 2, 3, 4, 5, 10, 20, np.inf]
    names = ["1", "2", "3", "4", "5", "6–10", "11–20", "> 20"]
    sizes = pd.cut(folds["group"].value_counts(), bounds, labels=names)
    return sizes.value_counts().reindex(names)


# --- how it is drawn ---


def draw_charts(figure: SubFigure, images: pd.DataFrame, folds: pd.DataFrame, measured: pd.DataFrame) -> None:
    axes = figure.subplots(2, 3).ravel()
    draw_counts(axes[0], class_counts(images))
    draw_sizes(axes[1], images)
    draw_group_sizes(axes[2], folds)
    totals = images["part"].value_counts()
    draw_grey_levels(axes[3], measured, totals, "mean", "Brightness of each image")
    draw_grey_levels(axes[4], measured, totals, "deviation", "Contrast of each image")
    draw_area(axes[5], measured["area"].dropna())


def draw_counts(axes: Axes, counts: pd.Series) -> None:
    colours = [COLOURS.get(name, "#f2abaa") for name in counts.index]
    bars = axes.barh(range(len(counts)), counts, color=colours, tick_label=counts.index)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("images")
    normal, defect = counts["train normal"], counts["train defect"]
    detail = f"1 defect to {normal / defect:.1f} normal images" if defect else "no defects to learn from"
    headline(axes, "Classes", detail)


def draw_sizes(axes: Axes, images: pd.DataFrame) -> None:
    """A bubble per part and size; small ones and defects lie on top, so that equal sizes show as rings."""
    sizes = images.groupby(["part", "width", "height"], observed=True).size().rename("images").reset_index()
    sizes = sizes.sort_values(["images", "part"], ascending=False)
    areas, colours = 15 + 600 * sizes["images"] / len(images), sizes["part"].map(COLOURS).tolist()
    axes.scatter(sizes["width"], sizes["height"], areas, colours, alpha=0.6, linewidths=0)
    for axis, side in ((axes.xaxis, "width"), (axes.yaxis, "height")):
        _size_scale(axis, images[side])
        axis.set_label_text(f"{side}, pixels")
    for key in sizes["part"].drop_duplicates().sort_values():
        axes.scatter([], [], 40, COLOURS[key], label=key)
    axes.legend(title="area: number of images")
    headline(axes, "Image sizes", size_summary(images))


def size_summary(images: pd.DataFrame) -> str:
    distinct = images.groupby(["width", "height"]).size()
    width, height = distinct.idxmax()
    if len(distinct) == 1:
        return f"all {len(images):,} images are {width} × {height}"
    return f"{len(distinct):,} different; most frequent: {width} × {height} ({distinct.max():,} images)"


def _size_scale(axis: Axis, lengths: pd.Series) -> None:
    """Linear from zero, so that proportions are seen; logarithmic where the smallest would be lost."""
    if lengths.max() > 8 * lengths.min():
        _log_scale(axis)
    else:
        axis.axes.set(**{f"{axis.axis_name}lim": (0, 1.25 * lengths.max())})


def _log_scale(axis: Axis) -> None:
    """Ticks at 1, 3, 10, 30, written as plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def draw_group_sizes(axes: Axes, folds: pd.DataFrame) -> None:
    sizes = group_sizes(folds)
    bars = axes.bar(sizes.index, sizes, color="#72b7b2")
    axes.bar_label(bars, [f"{count:,}" for count in sizes], padding=2)
    axes.margins(y=0.12)
    axes.set(xlabel="training images in the group", ylabel="groups")
    members = folds["group"].map(folds["group"].value_counts())
    mixed = int((folds.groupby("group")["label"].nunique() > 1).sum())
    siblings = f"{int((members > 1).sum()):,} of {len(folds):,} images have a sibling"
    headline(axes, "Photographs of the same thing", f"{siblings}; {mixed:,} groups hold both classes")


def draw_grey_levels(axes: Axes, measured: pd.DataFrame, totals: pd.Series, column: str, title: str) -> None:
    """Overlaid histograms of the parts, each in per cent of its own images: parts differ much in number."""
    bins = np.histogram_bin_edges(measured[column], 16)
    for key, rows in measured.groupby("part", observed=True):
        shares = np.full(len(rows), 100 / len(rows))
        of = "" if len(rows) == totals[key] else f" of {totals[key]:,}"
        style = {"histtype": "stepfilled", "fc": (COLOURS[key], 0.2), "ec": COLOURS[key], "lw": 1.5}
        axes.hist(rows[column], bins, weights=shares, label=f"{key} ({len(rows):,}{of} images)", **style)
    axes.set(xlabel="grey levels, 0 to 255", ylabel="share of the images of that colour, %")
    axes.locator_params(axis="x", nbins=7)
    axes.margins(y=0.5)  # room for the legend
    axes.legend(loc="upper right")
    means = {"mean": "mean grey level", "deviation": "standard deviation of the grey levels"}
    headline(axes, title, means[column])


def draw_area(axes: Axes, area: pd.Series) -> None:
    """`area`: marked share of each image with a mask, per cent."""
    if area.empty:
        axes.set_axis_off()
        headline(axes, "Defective area", "no masks in this data set")
        return
    low, high = area.min() / 2, min(100, 2 * area.max())
    axes.hist(area, np.geomspace(low, high, 18), color=COLOURS["train defect"])
    _log_scale(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="share of the image marked in its mask, %", ylabel="images")
    detail = f"{len(area):,} masks; median {area.median():.2g} %, {area.min():.2g} to {area.max():.2g} %"
    headline(axes, "Defective area", detail)


def draw_samples(figure: SubFigure, data: DataConfig, images: pd.DataFrame, rows: int) -> None:
    """A grid of images spread evenly over the part, and so over its kinds; masks as outlines."""
    shown = spread(images.sort_values(["kind", "image_id"]), rows * COLUMNS)
    marked = any(is_marked(row) for row in shown.to_dict("records"))
    outlined = ", defects outlined" if marked else ""
    title = f"{images['part'].iloc[0]}: {len(shown)} of {len(images):,} images{outlined}"
    figure.suptitle(title, x=0.008, ha="left", weight="bold")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, shown.to_dict("records"), strict=False):
        axes.imshow(image_tile(data, row))
        axes.set_title(caption(row["image_id"], row["kind"]), fontsize=8, pad=3)
