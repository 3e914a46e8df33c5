"""A comparison as Markdown, CSV, HTML and a figure."""

from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defects.files import write_bytes, write_csv
from defects.reports.charts import add_headline, draw_png, draw_svg
from defects.reports.comparison import COSTS
from defects.reports.html import (
    Charts,
    PageSection,
    Table,
    Text,
    build_markdown_table,
    build_page,
    format_number,
)

FORMATS = {
    "auroc": ("AUROC", ".3f"),
    "average_precision": ("AP", ".3f"),
    "macro_f1": ("macro-F1 (nested CV)", ".3f"),
    "dice": ("Dice", ".3f"),
    "dice_non_empty": ("Dice, not empty", ".3f"),
    "pixel_auroc": ("pixel AUROC", ".3f"),
    "aupro": ("AUPRO", ".3f"),
    "test_auroc": ("test AUROC", ".3f"),
    "test_average_precision": ("test AP", ".3f"),
    "test_macro_f1": ("test macro-F1", ".3f"),
    "test_macro_f1_at_training_share": ("test macro-F1, training share", ".3f"),
    "test_model_auroc": ("test AUROC, one model", ".3f"),
    "test_model_pixel_auroc": ("test pixel AUROC", ".3f"),
    "test_model_aupro": ("test AUPRO", ".3f"),
    "fit_seconds": ("fit, s", ",.0f"),
    "score_images_per_second": ("images/s", ",.1f"),
    "peak_memory_mb": ("peak memory, MiB", ",.0f"),
    "model_mb": ("model, MiB", ",.1f"),
}
NOTE = (
    "Mean ± standard deviation over folds, and over seeds where there are several. macro-F1 is that of all "
    "folds together, each decided by the threshold of the others, with its 90 % interval. Dice is that of "
    "out-of-fold masks by the untuned rule, over all pairs of image and class (empty against empty is 1) and "
    "over those that are not empty. Test figures are those of the folds' models averaged; those of one model "
    "and of pixels are of each model alone. Test macro-F1 is by the threshold that is submitted "
    "(threshold.prior), at the training share of defects by the threshold for that share. images/s "
    "include reading from the disk and averaging over turned copies."
)
NO_AUROC = "No fold holds both normal images and defects: there is no AUROC."
KEYS = ["experiment", "category"]
ABOUT = ["detector", "setting", "device"]
MEAN = "mean"  # of the categories
SERIES = {"auroc": ("out of fold", "#4c78a8"), "test_model_auroc": ("test images", "#f58518")}


def write_comparison(values: pd.DataFrame, name: str, folder: Path) -> tuple[list[Path], str]:
    """Write compare.md, .csv, .html and .png of comparison.measure's table; their paths and the Markdown."""
    summary = summarise(values)
    table = build_text_table(summary)
    draw = partial(draw_comparison, values, summary)
    note = "" if "auroc" in summary else NO_AUROC
    markdown = build_markdown_table(table) + (f"\n{note}\n" if note else "")
    paths = {suffix: folder / f"compare.{suffix}" for suffix in ("md", "csv", "html", "png")}
    write_bytes(paths["md"], markdown.encode())
    write_csv(paths["csv"], summary)
    write_bytes(paths["html"], build_comparison_page(name, table, draw_svg(draw), note).encode())
    write_bytes(paths["png"], draw_png(draw))
    return list(paths.values()), markdown


def build_comparison_page(name: str, table: pd.DataFrame, chart: str, note: str) -> str:
    """compare.html, from the table of texts and the figure as SVG."""
    figure = [Text(note)] if note else []
    sections = [
        PageSection("Figure", [*figure, Charts([chart], width=None)]),
        PageSection("Table", [Table(table), Text(NOTE)]),
    ]
    count = table.index.nunique()
    subtitle = f"{count} experiment" if count == 1 else f"{count} experiments"
    return build_page(f"Comparison on {name}", subtitle, sections)


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """A row for each experiment and category: every metric, and <metric>_spread (None for a single value).

    With categories, also the mean of their means, as papers report it, where all of them have the metric.
    """
    figures = values.groupby([*KEYS, "metric"], sort=False)["value"].agg(["mean", "std"])
    figures = figures.unstack("metric", sort=False)
    first = {name: (name, "first") for name in ABOUT}
    models = values[values["metric"] == "auroc"].groupby(KEYS, sort=False)  # a value of each
    about = models.agg(**first, folds=("fold", "nunique"), seeds=("source", "nunique"))
    table = pd.concat([about, figures["mean"], figures["std"].add_suffix("_spread")], axis=1).reset_index()
    table = table.dropna(axis=1, how="all")
    if table["category"].nunique() == 1:
        return table
    return pd.concat([_with_mean(rows) for _, rows in table.groupby("experiment", sort=False)])


def _with_mean(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the categories of one experiment, and their mean."""
    metrics = [name for name in rows.columns if name in FORMATS]
    mean = rows[metrics].mean(skipna=False).to_frame().T.assign(category=MEAN)
    same = rows[["experiment", *ABOUT, "folds", "seeds"]].iloc[0]
    return pd.concat([rows, mean.assign(**same)], ignore_index=True)


def build_text_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The columns that hold anything, as texts: `0.812 ± 0.045`, `0.615 (0.505 to 0.726)`."""
    table = summary[["experiment", "category", "detector", "setting", "folds", "seeds"]].astype(str)
    if not summary["category"].any():
        table = table.drop(columns="category")
    if summary["seeds"].max() == 1:
        table = table.drop(columns="seeds")
    for name, (title, form) in FORMATS.items():
        if name in summary and summary[name].notna().any():
            table[title] = [_cell(row, name, form) for _, row in summary.iterrows()]
    if summary["device"].any():
        table["device"] = summary["device"]
    return table.set_index("experiment")


def _cell(row: pd.Series, name: str, form: str) -> str:
    text = format_number(row[name], form)
    spread = row.get(f"{name}_spread")
    if name in COSTS:
        return text
    if pd.notna(spread):
        return f"{text} ± {spread:{form}}"
    if name == "macro_f1" and pd.notna(row.get("macro_f1_low")):
        return f"{text} ({row['macro_f1_low']:{form}} to {row['macro_f1_high']:{form}})"
    return text


def draw_comparison(values: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """AUROC of each experiment, a dot for every model (or category) around the mean; images per second.

    Without any AUROC only the latter.
    """
    means = summary["category"] == MEAN
    rows = summary[means] if means.any() else summary
    rows = rows.iloc[::-1].reset_index(drop=True)  # the first one on top
    timed = "score_images_per_second" in rows and rows["score_images_per_second"].notna().any()
    ranked = any(name in rows for name in SERIES)
    figure = Figure(figsize=(13, 1.6 + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 1 + bool(ranked and timed), sharey=True, squeeze=False)[0]
    panels[0].set_yticks(range(len(rows)), rows["experiment"])
    if ranked:
        _draw_auroc(panels[0], values, rows)
    if timed:
        _draw_speed(panels[-1], rows["score_images_per_second"])
    return figure


def _draw_auroc(axes: Axes, values: pd.DataFrame, rows: pd.DataFrame) -> None:
    series = {name: style for name, style in SERIES.items() if name in rows and rows[name].notna().any()}
    for shift, (name, (label, colour)) in enumerate(series.items()):
        for place, row in rows.iterrows():
            of_row = values[(values["experiment"] == row["experiment"]) & (values["metric"] == name)]
            # With categories a dot is one of them, and not one of its folds.
            dots = of_row.groupby("category")["value"].mean() if row["category"] == MEAN else of_row["value"]
            height = place - 0.2 * shift
            axes.plot(dots, [height] * len(dots), ".", color=colour, alpha=0.5)
            style = {"color": colour, "capsize": 4, "label": None if place else label}
            axes.errorbar(row[name], height, xerr=dots.std() if len(dots) > 1 else None, fmt="D", **style)
    axes.set_ylim(-0.7, len(rows) - 0.4)
    axes.set_xlabel("AUROC")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    what = "category" if (rows["category"] == MEAN).any() else "fold and seed"
    add_headline(axes, "Image AUROC", f"mean and standard deviation; a dot for each {what}")


def _draw_speed(axes: Axes, speeds: pd.Series) -> None:
    bars = axes.barh(range(len(speeds)), speeds.fillna(0), height=0.5, color="#72b7b2")
    axes.bar_label(bars, [format_number(speed, ",.1f") for speed in speeds], padding=4)
    axes.set_xlabel("images per second")
    axes.margins(x=0.15)
    add_headline(axes, "Speed of scoring", "with reading from the disk")
