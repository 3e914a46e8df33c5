"""One page about a data set, to be read before anything is trained on it.

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
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from tqdm import tqdm

from defects.config_schema import Config, DataConfig, resolve
from defects.data.fold_files import EDGES, format_correlation, load_search
from defects.data.images import read_image
from defects.data.labels import is_marked, read_masks
from defects.data.registration import flip_image
from defects.files import read_csv
from defects.reports import html
from defects.reports.charts import (
    DEFECT_COLOUR,
    NORMAL_COLOUR,
    TEST_COLOUR,
    add_headline,
    add_histogram,
    draw_panel,
    shorten_name,
)
from defects.reports.figures import (
    THUMBNAIL_PIXELS,
    build_side_by_side,
    draw_side_by_side,
    mark_defects,
    read_inside,
    read_tile,
)
from defects.reports.roi_section import draw_roi_extremes

PART_COLOURS = {"train defect": DEFECT_COLOUR, "train normal": NORMAL_COLOUR, "test": TEST_COLOUR}
KIND_COLOUR = "#f2abaa"
GROUP_COLOUR = "#72b7b2"
EXAMPLES_OF_PART = {"train defect": 24, "train normal": 24, "test": 12}  # images of each part on the page
MEASURED_IMAGES = 650  # of each part, whose pixels are read: below 2,000 in all
KIND_BARS = 8  # kinds of defect with a bar of their own
MOST_GROUPS = 40
JOINED_PAIRS = 16  # at most, of one group
SEPARATE_PAIRS = 12  # at most, of different groups
CORRELATION_TICKS = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999]
LABEL_NAMES = {0: "normal", 1: "defect"}
CHARTS_TEXT = (
    "What differs between the classes, or between training and test, is learnt in place of the defects. A "
    "share is one of all images of that colour."
)
GROUPS_TEXT = (
    "Images of a group are taken to show the same thing, so a group is never divided between folds. Where "
    "such images do not show the same thing, or others do, name what belongs together in split.group_file or "
    "split.group_pattern."
)
NO_GROUPS_TEXT = "No two images are taken to show the same thing."


def build_data_report(
    data: DataConfig, images: pd.DataFrame, folds: pd.DataFrame, siblings: list[html.Block]
) -> str:
    """The page as HTML, about `images` (of images.csv) and `folds` (of folds.csv, joined with images.csv).

    `siblings` are those of draw_siblings.
    """
    images = images.assign(part=name_parts(images))
    test = int((images["part"] == "test").sum())
    subtitle = f"{len(images) - test:,} training images, {f'{test:,}' if test else 'no'} test images"
    panels = list_panels_of(images, folds, measure_images(data, images))
    sections = [
        html.PageSection(
            "Charts", [html.Text(CHARTS_TEXT), html.Charts([draw_panel(panel) for panel in panels])]
        ),
        html.PageSection("Images", draw_example_images(data, images)),
        html.PageSection("Region of interest", draw_roi_extremes(data, pick_spread(images, MEASURED_IMAGES))),
        html.PageSection("How alike photographs are", siblings),
        html.PageSection("Photographs of the same thing", draw_groups(data, folds)),
    ]
    return html.build_page(data.name, subtitle, sections)


def name_parts(images: pd.DataFrame) -> pd.Categorical:
    """[N], a key of PART_COLOURS and in their order: where each image of images.csv belongs."""
    train = np.where(images["label"].eq(1).fillna(False), "train defect", "train normal")
    return pd.Categorical(
        np.where(images["split"] == "test", "test", train), list(PART_COLOURS), ordered=True
    )


def list_panels_of(
    images: pd.DataFrame, folds: pd.DataFrame, measured: pd.DataFrame
) -> list[Callable[[Axes], None]]:
    """What draws each chart; `images` have their part, `measured` is that of measure_images."""
    totals = images["part"].value_counts()
    area = measured["area"].dropna()
    panels = [
        partial(draw_counts, counts=count_classes(images)),
        partial(draw_image_sizes, images=images),
        partial(draw_group_sizes, folds=folds),
        partial(draw_grey_levels, measured=measured, totals=totals, column="mean"),
        partial(draw_grey_levels, measured=measured, totals=totals, column="deviation"),
    ]
    if len(area):
        panels.append(partial(draw_area, area=area))
    return panels


def draw_example_images(data: DataConfig, images: pd.DataFrame) -> list[html.Block]:
    """Images of each part, spread evenly over it and so over its kinds; defects are outlined."""
    blocks: list[html.Block] = []
    for name, count in EXAMPLES_OF_PART.items():
        of_part = images[images["part"] == name].sort_values(["kind", "image_id"])
        if of_part.empty:
            continue
        rows = pick_spread(of_part, count).to_dict("records")
        outlined = ", defects outlined in yellow" if any(is_marked(row) for row in rows) else ""
        title = f"{name}: {len(rows):,} of {len(of_part):,} images{outlined}"
        blocks.append(html.Cards(title, [draw_sample(data, row) for row in rows]))
    return blocks


def draw_sample(data: DataConfig, row: dict[str, Any]) -> html.Card:
    name = Path(row["image_id"]).name
    tile = mark_defects(read_tile(data, row), data, row)
    facts = (html.Fact(row["kind"]),) if row["kind"] else ()
    return html.Card(name, (html.embed_jpeg(tile, name),), facts, row["image_id"])


def draw_groups(data: DataConfig, folds: pd.DataFrame) -> list[html.Block]:
    """Groups of two or more images; those with different labels come first.

    Of those of one class, up to MOST_GROUPS in all, half are the largest and half an even sample.
    """
    members = folds[folds.duplicated("group", keep=False)]
    if members.empty:
        return [html.Text(NO_GROUPS_TEXT)]
    labels = members.groupby("group")["label"].nunique()
    sizes = members.groupby("group").size().sort_values(ascending=False, kind="stable")
    mixed = sizes[labels[sizes.index] > 1].index
    pure = sizes[labels[sizes.index] <= 1].index
    chosen = choose_groups(pure, max(0, MOST_GROUPS - len(mixed)))
    counts = f"{len(sizes):,} groups of {len(folds):,} images have two or more members"
    blocks: list[html.Block] = [html.Text(GROUPS_TEXT), html.Text(f"{counts}.")]
    for title, groups, total, is_alert in (
        ("Groups that hold both classes", mixed[:MOST_GROUPS], len(mixed), True),
        ("Groups of one class", chosen, len(pure), False),
    ):
        if len(groups):
            cards = [draw_group(data, members[members["group"] == group]) for group in groups]
            title = f"{title} ({len(groups)} of {total:,})"
            blocks.append(html.Cards(title, cards, is_alert, html.SMALL_DISPLAY_PIXELS, most_across=4))
    return blocks


def choose_groups(groups: pd.Index, count: int) -> list:
    """The first of `groups`, which are sorted by size, and an even sample of the others."""
    largest = min(len(groups), (count + 1) // 2)
    smaller = groups[largest:]
    positions = np.linspace(0, len(smaller) - 1, min(count - largest, len(smaller))).astype(int)
    return [*groups[:largest], *smaller[positions]]


def draw_group(data: DataConfig, rows: pd.DataFrame) -> html.Card:
    captions = [LABEL_NAMES.get(label, "") for label in rows["label"]]
    return draw_side_by_side(data, rows.to_dict("records"), captions, f"{len(rows):,} images")


def pick_spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows: a random one of each equal stretch of the table, the same ones every time.

    Every tenth row would show one texture only of a data set whose ten textures take turns.
    """
    bounds = np.linspace(0, len(table), min(count, len(table)) + 1).astype(int)
    return table.iloc[np.random.default_rng(0).integers(bounds[:-1], bounds[1:])]


def measure_images(data: DataConfig, images: pd.DataFrame) -> pd.DataFrame:
    """Of at most MEASURED_IMAGES of each part: part, mean and deviation (grey levels), area (per cent)."""
    sample = pd.concat(
        [pick_spread(rows, MEASURED_IMAGES) for _, rows in images.groupby("part", observed=True)]
    )
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        jobs = pool.map(partial(_measure_one, data), sample.to_dict("records"))
        facts = list(tqdm(jobs, "measuring images", len(sample), leave=False, disable=None))
    facts = pd.DataFrame(facts, columns=["mean", "deviation", "area"])
    return facts.assign(part=sample["part"].array)


def _measure_one(data: DataConfig, row: dict[str, Any]) -> tuple[float, float, float]:
    root = resolve(data.root)
    image = read_image(root / row["path"], bits=data.bits)
    inside = read_inside(data, row, image.shape[:2])
    judged = None if inside is None else inside.astype(np.uint8)
    mean, deviation = cv2.meanStdDev(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), mask=judged)
    mask = read_masks(row, root, [])
    if mask is not None and inside is not None:
        mask = mask[inside]
    area = np.nan if mask is None else 100 * float(mask.mean())
    return mean.item(), deviation.item(), area


def count_classes(images: pd.DataFrame) -> pd.Series:
    """Images of each part; after the defects, of each kind of defect where kinds are known."""
    parts = images["part"].value_counts(sort=False).rename(index=str)
    kinds = images.loc[(images["part"] == "train defect") & (images["kind"] != ""), "kind"].value_counts()
    if len(kinds) > KIND_BARS:
        rare = kinds.iloc[KIND_BARS - 1 :]
        kinds = pd.concat([kinds.iloc[: KIND_BARS - 1], pd.Series({f"{len(rare)} other kinds": rare.sum()})])
    kinds.index = "defect: " + kinds.index.astype(str).map(shorten_name)
    return pd.concat([parts[["train defect"]], kinds, parts[["train normal", "test"]]])


def count_group_sizes(folds: pd.DataFrame) -> pd.Series:
    """Number of groups by how many images they hold."""
    bounds = [0, 1, 2, 3, 4, 5, 10, 20, np.inf]
    names = ["1", "2", "3", "4", "5", "6–10", "11–20", "> 20"]
    sizes = pd.cut(folds["group"].value_counts(), bounds, labels=names)
    return sizes.value_counts().reindex(names)


def draw_counts(axes: Axes, counts: pd.Series) -> None:
    colours = [PART_COLOURS.get(name, KIND_COLOUR) for name in counts.index]
    bars = axes.barh(range(len(counts)), counts, color=colours, tick_label=counts.index)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("images")
    normal = counts["train normal"]
    defect = counts["train defect"]
    detail = f"1 defect to {normal / defect:.1f} normal images" if defect else "no defects to learn from"
    add_headline(axes, "Classes", detail)


def draw_image_sizes(axes: Axes, images: pd.DataFrame) -> None:
    """A bubble per part and size; small ones and defects lie on top, so that equal sizes show as rings."""
    sizes = images.groupby(["part", "width", "height"], observed=True).size().rename("images").reset_index()
    sizes = sizes.sort_values(["images", "part"], ascending=False)
    areas = 15 + 600 * sizes["images"] / len(images)
    colours = sizes["part"].map(PART_COLOURS).tolist()
    axes.scatter(sizes["width"], sizes["height"], areas, colours, alpha=0.6, linewidths=0)
    for axis, side in ((axes.xaxis, "width"), (axes.yaxis, "height")):
        _size_scale(axis, images[side])
        axis.set_label_text(f"{side}, pixels")
    for key in sizes["part"].drop_duplicates().sort_values():
        axes.scatter([], [], 40, PART_COLOURS[key], label=key)
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
    """Overlaid histograms of the parts, in shares of their images."""
    bins = np.histogram_bin_edges(measured[column], 16)
    for key, rows in measured.groupby("part", observed=True):
        total = "" if len(rows) == totals[key] else f" of {totals[key]:,}"
        add_histogram(axes, rows[column], bins, PART_COLOURS[key], f"{key} ({len(rows):,}{total} images)")
    axes.set(xlabel="grey levels, 0 to 255", ylabel="share of the images of that colour")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.locator_params(axis="x", nbins=7)
    axes.margins(y=0.5)  # space for the legend
    axes.legend(loc="upper right")
    titles = {
        "mean": ("Brightness of each image", "mean grey level"),
        "deviation": ("Contrast of each image", "standard deviation of the grey levels"),
    }
    add_headline(axes, *titles[column])


def draw_area(axes: Axes, area: pd.Series) -> None:
    """`area`: marked share of each image with a mask, per cent."""
    low = area.min() / 2
    high = min(100, 2 * area.max())
    axes.hist(area, np.geomspace(low, high, 18), color=PART_COLOURS["train defect"])
    _log_scale(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="share of the image marked in its mask, %", ylabel="images")
    detail = f"{len(area):,} masks; median {area.median():.2g} %, {area.min():.2g} to {area.max():.2g} %"
    add_headline(axes, "Defective area", detail)


# --- siblings ----------------------------------------------------------------------------------------------


def draw_siblings(config: Config, folds: pd.DataFrame) -> list[html.Block]:
    """The chart, pairs of one group and pairs of different groups; nothing where the search is switched off.

    `folds` are the training rows of images.csv with their group.
    """
    search = load_search(config)
    if search is None:
        return []
    pairs = read_csv(config.dataset_dir / "pairs.csv", ["i", "j", "kind", "flip"], "src/split.py")
    joined = choose_least_certain(pairs, folds)
    separate = pd.DataFrame(search["closest_apart"], columns=["i", "j", "correlation", "flip"])[
        :SEPARATE_PAIRS
    ]
    images = folds.set_index("image_id", drop=False)
    blocks: list[html.Block] = [html.Charts([draw_panel(partial(draw_correlations, search=search))])]
    for title, chosen in (
        ("In one group, the least certain first", joined),
        ("In different groups, the closest first", separate),
    ):
        if len(chosen):
            cards = [draw_pair(config.data, images, pair) for pair in chosen.to_dict("records")]
            blocks.append(html.Cards(title, cards))
    return blocks


def choose_least_certain(pairs: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """The JOINED_PAIRS pairs that agree least among those that the search put into one group."""
    group = folds.set_index("image_id")["group"]
    is_joined = pairs["i"].map(group).to_numpy() == pairs["j"].map(group).to_numpy()
    joined = pairs[is_joined & (pairs["kind"] == "sibling")]
    return joined.sort_values("correlation", kind="stable")[:JOINED_PAIRS]


def draw_correlations(axes: Axes, search: dict[str, Any]) -> None:
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
    axes.set_xticks(np.arctanh(CORRELATION_TICKS), [f"{tick:g}" for tick in CORRELATION_TICKS], rotation=45)
    axes.set(xlabel="correlation of the registered pictures", ylabel="pairs", xlim=(EDGES[0], EDGES[-1]))
    axes.legend()
    limit = format_correlation(threshold)
    detail = f"pairs above {limit} are taken to show one object"
    if search["kind"] == "alike":
        detail = f"pairs that stand out, most above {limit}, are taken to show one object"
    add_headline(axes, "How alike photographs are", detail)


def draw_pair(data: DataConfig, images: pd.DataFrame, pair: dict[str, Any]) -> html.Card:
    """Two photographs in a row, the second flipped as it lies on the first."""
    image_ids = [pair["i"], pair["j"]]
    names = [Path(image_id).name for image_id in image_ids]
    tiles = [read_tile(data, images.loc[image_id].to_dict(), THUMBNAIL_PIXELS) for image_id in image_ids]
    tiles[1] = np.ascontiguousarray(flip_image(tiles[1], pair["flip"]))
    title = f"correlation {format_correlation(pair['correlation'])}"
    facts = (html.Fact(f"the second one flipped: {pair['flip']}"),) if pair["flip"] != "none" else ()
    return build_side_by_side(title, names, tiles, ["", ""], facts)
