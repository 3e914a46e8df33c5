"""One page about a data set, to be looked at before anything is trained on it.

Its charts compare what must not differ between the classes, or between training and test: sizes, grey
levels. Where they do differ, a detector will learn that difference instead of the defects. Below them sample
images, and the groups of images that are taken to show the same thing.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator
from tqdm import tqdm

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import read_image
from defects.data.labels import is_marked, read_masks
from defects.files import write_bytes
from defects.reports.charts import (
    DEFECT_COLOUR,
    NORMAL_COLOUR,
    TEST_COLOUR,
    add_headline,
    draw_panel,
    shorten_name,
)
from defects.reports.figures import draw_side_by_side, mark_defects, read_tile
from defects.reports.html import (
    SMALL_DISPLAY_PIXELS,
    Block,
    Card,
    Cards,
    Charts,
    Fact,
    PageSection,
    Text,
    build_page,
    embed_jpeg,
)

COLOURS = {"train defect": DEFECT_COLOUR, "train normal": NORMAL_COLOUR, "test": TEST_COLOUR}  # of the parts
KIND_COLOUR, GROUP_COLOUR = "#f2abaa", "#72b7b2"
SAMPLES = {"train defect": 24, "train normal": 24, "test": 12}  # images of each part on the page
MEASURED = 650  # images of each part whose pixels are read: below 2,000 in all
KINDS = 8  # kinds of defect listed one by one
MOST_GROUPS = 40  # shown
CLASSES = {0: "normal", 1: "defect"}
CHARTS = (
    "What differs between the classes, or between training and test, is learnt in place of the defects. A "
    "share is one of all images of that colour."
)
GROUPS = (
    "Images of a group are taken to show the same thing, so a group is never divided between folds. Where "
    "such images do not show the same thing, or others do, name what belongs together in split.group_file or "
    "split.group_pattern."
)
NO_GROUPS = "No two images are taken to show the same thing."


def write_data_report(
    path: Path, data: DataConfig, images: pd.DataFrame, folds: pd.DataFrame, siblings: list[Block]
) -> None:
    """Write the page about `images` (of images.csv) and `folds` (of folds.csv, joined with images.csv).

    `siblings` are those of sibling_pairs.draw_siblings.
    """
    write_bytes(path, build_data_report(data, images, folds, siblings).encode())


def build_data_report(
    data: DataConfig, images: pd.DataFrame, folds: pd.DataFrame, siblings: list[Block]
) -> str:
    """The page as HTML."""
    images = images.assign(part=name_parts(images))
    test = int((images["part"] == "test").sum())
    subtitle = f"{len(images) - test:,} training images, {f'{test:,}' if test else 'no'} test images"
    panels = list_panels_of(images, folds, measure_images(data, images))
    sections = [
        PageSection("Charts", [Text(CHARTS), Charts([draw_panel(panel) for panel in panels])]),
        PageSection("Images", draw_example_images(data, images)),
        PageSection("How alike photographs are", siblings),
        PageSection("Photographs of the same thing", draw_groups(data, folds)),
    ]
    return build_page(data.name, subtitle, sections)


def name_parts(images: pd.DataFrame) -> pd.Categorical:
    """[N], a key of COLOURS and in their order: where each image of images.csv belongs."""
    train = np.where(images["label"].eq(1).fillna(False), "train defect", "train normal")
    return pd.Categorical(np.where(images["split"] == "test", "test", train), list(COLOURS), ordered=True)


def list_panels_of(
    images: pd.DataFrame, folds: pd.DataFrame, measured: pd.DataFrame
) -> list[Callable[[Axes], None]]:
    """What draws each chart; `images` have their part, `measured` is that of measure_images."""
    totals = images["part"].value_counts()
    area = measured["area"].dropna()
    panels = [
        partial(draw_counts, counts=count_classes(images)),
        partial(draw_sizes, images=images),
        partial(draw_group_sizes, folds=folds),
        partial(draw_grey_levels, measured=measured, totals=totals, column="mean"),
        partial(draw_grey_levels, measured=measured, totals=totals, column="deviation"),
    ]
    if len(area):
        panels.append(partial(draw_area, area=area))
    return panels


def draw_example_images(data: DataConfig, images: pd.DataFrame) -> list[Block]:
    """Images of each part, spread evenly over it and so over its kinds; defects are outlined."""
    blocks: list[Block] = []
    for name, count in SAMPLES.items():
        of_part = images[images["part"] == name].sort_values(["kind", "image_id"])
        if of_part.empty:
            continue
        rows = pick_spread(of_part, count).to_dict("records")
        outlined = ", defects outlined in yellow" if any(is_marked(row) for row in rows) else ""
        title = f"{name}: {len(rows):,} of {len(of_part):,} images{outlined}"
        blocks.append(Cards(title, [draw_sample(data, row) for row in rows]))
    return blocks


def draw_sample(data: DataConfig, row: dict[str, Any]) -> Card:
    name = Path(row["image_id"]).name
    tile = mark_defects(read_tile(data, row), data, row)
    facts = (Fact(row["kind"]),) if row["kind"] else ()
    return Card(name, (embed_jpeg(tile, name),), facts, row["image_id"])


def draw_groups(data: DataConfig, folds: pd.DataFrame) -> list[Block]:
    """Groups of two or more images; those with different labels come first.

    Half of the others, up to MOST_GROUPS in all, are the largest groups, half an even sample of the rest.
    """
    members = folds[folds.duplicated("group", keep=False)]
    if members.empty:
        return [Text(NO_GROUPS)]
    labels = members.groupby("group")["label"].nunique()
    sizes = members.groupby("group").size().sort_values(ascending=False, kind="stable")
    mixed = sizes[labels[sizes.index] > 1].index
    others = sizes[labels[sizes.index] <= 1].index
    shown = choose_groups(others, max(0, MOST_GROUPS - len(mixed)))
    counts = f"{len(sizes):,} groups of {len(folds):,} images have two or more members"
    blocks: list[Block] = [Text(GROUPS), Text(f"{counts}.")]
    for title, groups, total, is_alert in (
        ("Groups that hold both classes", mixed[:MOST_GROUPS], len(mixed), True),
        ("Groups of one class", shown, len(others), False),
    ):
        if len(groups):
            cards = [draw_group(data, members[members["group"] == group]) for group in groups]
            title = f"{title} ({len(groups)} of {total:,})"
            blocks.append(Cards(title, cards, is_alert, SMALL_DISPLAY_PIXELS, most_across=4))
    return blocks


def choose_groups(groups: pd.Index, count: int) -> list:
    """The first of `groups`, which are sorted by size, and an even sample of the others."""
    largest = min(len(groups), (count + 1) // 2)
    rest = groups[largest:]
    places = np.linspace(0, len(rest) - 1, min(count - largest, len(rest))).astype(int)
    return [*groups[:largest], *rest[places]]


def draw_group(data: DataConfig, rows: pd.DataFrame) -> Card:
    captions = [CLASSES.get(label, "") for label in rows["label"]]
    return draw_side_by_side(data, rows.to_dict("records"), captions, f"{len(rows):,} images")


def pick_spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows: a random one of each equal stretch of the table, the same ones every time.

    Every tenth row would show one texture only of a data set whose ten textures take turns.
    """
    bounds = np.linspace(0, len(table), min(count, len(table)) + 1).astype(int)
    return table.iloc[np.random.default_rng(0).integers(bounds[:-1], bounds[1:])]


def measure_images(data: DataConfig, images: pd.DataFrame) -> pd.DataFrame:
    """Of at most MEASURED images of each part: part, mean and deviation (grey levels), area (per cent)."""
    sample = pd.concat([pick_spread(rows, MEASURED) for _, rows in images.groupby("part", observed=True)])
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


def count_classes(images: pd.DataFrame) -> pd.Series:
    """Images of each part; after the defects, of each kind of defect where kinds are known."""
    parts = images["part"].value_counts(sort=False).rename(index=str)
    kinds = images.loc[(images["part"] == "train defect") & (images["kind"] != ""), "kind"].value_counts()
    if len(kinds) > KINDS:
        rest = kinds.iloc[KINDS - 1 :]
        kinds = pd.concat([kinds.iloc[: KINDS - 1], pd.Series({f"{len(rest)} other kinds": rest.sum()})])
    kinds.index = "defect: " + kinds.index.astype(str).map(shorten_name)
    return pd.concat([parts[["train defect"]], kinds, parts[["train normal", "test"]]])


def count_group_sizes(folds: pd.DataFrame) -> pd.Series:
    """Number of groups by how many images they hold."""
    bounds = [0, 1, 2, 3, 4, 5, 10, 20, np.inf]
    names = ["1", "2", "3", "4", "5", "6–10", "11–20", "> 20"]
    sizes = pd.cut(folds["group"].value_counts(), bounds, labels=names)
    return sizes.value_counts().reindex(names)


def draw_counts(axes: Axes, counts: pd.Series) -> None:
    colours = [COLOURS.get(name, KIND_COLOUR) for name in counts.index]
    bars = axes.barh(range(len(counts)), counts, color=colours, tick_label=counts.index)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("images")
    normal, defect = counts["train normal"], counts["train defect"]
    detail = f"1 defect to {normal / defect:.1f} normal images" if defect else "no defects to learn from"
    add_headline(axes, "Classes", detail)


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
    add_headline(axes, "Image sizes", describe_sizes(images))


def describe_sizes(images: pd.DataFrame) -> str:
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
    sizes = count_group_sizes(folds)
    bars = axes.bar(sizes.index, sizes, color=GROUP_COLOUR)
    axes.bar_label(bars, [f"{count:,}" for count in sizes], padding=2)
    axes.margins(y=0.12)
    axes.set(xlabel="training images in the group", ylabel="groups")
    members = folds["group"].map(folds["group"].value_counts())
    mixed = int((folds.groupby("group")["label"].nunique() > 1).sum())
    siblings = f"{int((members > 1).sum()):,} of {len(folds):,} images have a sibling"
    add_headline(axes, "Photographs of the same thing", f"{siblings}; {mixed:,} groups hold both classes")


def draw_grey_levels(axes: Axes, measured: pd.DataFrame, totals: pd.Series, column: str) -> None:
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
    titles = {
        "mean": ("Brightness of each image", "mean grey level"),
        "deviation": ("Contrast of each image", "standard deviation of the grey levels"),
    }
    add_headline(axes, *titles[column])


def draw_area(axes: Axes, area: pd.Series) -> None:
    """`area`: marked share of each image with a mask, per cent."""
    low, high = area.min() / 2, min(100, 2 * area.max())
    axes.hist(area, np.geomspace(low, high, 18), color=COLOURS["train defect"])
    _log_scale(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="share of the image marked in its mask, %", ylabel="images")
    detail = f"{len(area):,} masks; median {area.median():.2g} %, {area.min():.2g} to {area.max():.2g} %"
    add_headline(axes, "Defective area", detail)
