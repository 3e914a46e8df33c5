"""Figures of several experiments on one data set, or on its categories, in one table, page and chart.

Everything measured is kept in one long table, a row for each fold, seed and metric, from which means and
spreads are taken. Experiments that differ in their seeds alone count as one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defects.config import known_config_files, with_model
from defects.config_schema import Config
from defects.data.fold_files import DataTables
from defects.evaluation.estimate import aligned_oof, estimate, without_seeds
from defects.evaluation.outcome import load_answers, outcome
from defects.evaluation.pixels import Maps
from defects.evaluation.scales import compute_run_scores
from defects.evaluation.thresholds import choose_submitted_threshold
from defects.files import write_bytes, write_csv
from defects.messages import UserError, shorten_names
from defects.reports import html
from defects.reports.charts import add_headline, draw_png, draw_svg
from defects.reports.mask_report import measure_dice
from defects.reports.run_report import measure_fold
from defects.runs import OOF_MAPS, TEST_MAPS, Run

ACCURACY = ["auroc", "average_precision", "pixel_auroc", "aupro"]  # of one model
COST_FIGURES = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb"]
OUTCOME = ["auroc", "average_precision", "macro_f1", "macro_f1_at_training_share"]  # of all models together
ALL_FOLDS = "all"  # in place of a fold
VALUE_COLUMNS = [
    "experiment",
    "category",
    "detector",
    "setting",
    "device",
    "source",
    "fold",
    "metric",
    "value",
]

METRIC_FORMATS = {
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
    "include reading from the disk and averaging over flipped and rotated copies."
)
NO_AUROC = "No fold holds both normal images and defects: there is no out-of-fold AUROC."
ROW_KEYS = ["experiment", "category"]
RUN_COLUMNS = ["detector", "setting", "device"]
MEAN = "mean"  # of the categories
SERIES = {"auroc": ("out of fold", "#4c78a8"), "test_model_auroc": ("test images", "#f58518")}

Value = tuple[str, str, float | None]  # fold, metric, value


def group_by_category(runs: list[Run]) -> list[list[Run]]:
    """The runs of one data set, or of each of its categories. UserError for runs on several data sets."""
    names = list(dict.fromkeys(run.config.data.whole_name for run in runs))
    if len(names) > 1:
        raise UserError(f"the runs are trained on {shorten_names(names)}: compare those on one data set")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.config.data.name, []).append(run)
    return list(groups.values())


def measure_runs(
    groups: list[list[Run]], load_tables: Callable[[Config], DataTables], test: bool = False
) -> pd.DataFrame:
    """The long table, VALUE_COLUMNS; `source` is the run's name. A group has the same training images.

    With `test` the answer key of the test images is read. Raises UserError for runs that belong to other
    data.
    """
    rows = []
    for runs in groups:
        tables = load_tables(runs[0].config)
        names: dict[str, str] = {}  # by configuration, the name of its first run
        for run in runs:
            config = run.config
            category = config.data.category or ""
            name = run.name.removesuffix(f"_{category}") if category else run.name
            experiment = names.setdefault(without_seeds(config), name)
            device = run.read_costs(run.held_out_folds()[0]).get("device", "")
            about = (experiment, category, config.model.name, describe_setting(config), device, run.name)
            rows += [(*about, *value) for value in measure_one(run, tables, test)]
    return pd.DataFrame(rows, columns=VALUE_COLUMNS).astype({"value": float})


def measure_one(run: Run, tables: DataTables, test: bool) -> Iterator[Value]:
    """All figures of a run: of each fold, and of the folds together."""
    oof = aligned_oof(run, tables)
    yield from _measure_folds(run, oof, OOF_MAPS, ACCURACY + COST_FIGURES)
    yield from _measure_masks(run, tables.images)
    settings = run.config.threshold
    expected = estimate(oof, settings)
    if expected["defects"] < expected["images"]:  # or there is no macro-F1
        yield ALL_FOLDS, "macro_f1", expected["nested_macro_f1"]
        if expected["interval_90"] is not None:
            low, high = expected["interval_90"]
            yield ALL_FOLDS, "macro_f1_low", low
            yield ALL_FOLDS, "macro_f1_high", high
    if test:
        yield from _measure_test(run, tables.images, oof, expected)


def _measure_folds(
    run: Run, rows: pd.DataFrame, maps_file: str, metrics: list[str], prefix: str = ""
) -> Iterator[Value]:
    """Of each fold's model on its `rows` (label, raw, fold, and those of images.csv)."""
    for fold, of_fold in rows.groupby("fold"):
        maps = Maps(run.fold_folder(fold) / maps_file)
        figures = measure_fold(of_fold, maps, run.read_costs(fold), run.config.data)
        for name in metrics:
            yield fold, prefix + name, figures[name]


def _measure_masks(run: Run, images: pd.DataFrame) -> Iterator[Value]:
    """Dice of each fold by the untuned rule, over all pairs of image and class and over those not empty."""
    data = run.config.data
    rows = run.read_oof()
    rows = rows[rows["target"].isin(data.classes)]
    if rows.empty:
        return
    rows = rows.merge(images.drop(columns="label"), on="image_id")
    maps = {fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in rows["fold"].unique()}
    dice = measure_dice(data, rows, maps)
    if dice is None:
        return
    for fold, part in dice.groupby("fold"):
        yield fold, "dice", part["dice"].mean()
        yield fold, "dice_non_empty", part.loc[~part["empty"], "dice"].mean()


def _measure_test(run: Run, images: pd.DataFrame, oof: pd.DataFrame, expected: dict) -> Iterator[Value]:
    """`test_…`: of all models averaged, as submitted; `test_model_…`: of each model alone.

    At the training share of defects, macro-F1 is that of the threshold for this share, whatever is submitted.
    """
    scored = run.load_test_scores()
    share = float(images.loc[images["split"] == "train", "label"].astype(float).mean())
    answers = load_answers(run.config, images)
    answered = scored.rename(columns={"score": "raw"}).merge(answers, on="image_id", how="left")
    if answered["label"].isna().any():
        lacking = answered.loc[answered["label"].isna(), "image_id"].nunique()
        raise UserError(f"{run.name}: the answer key lacks {lacking} of its test images")
    sized = answered.merge(images[["image_id", "width", "height"]], on="image_id")
    yield from _measure_folds(run, sized, TEST_MAPS, ACCURACY, "test_model_")
    scores = compute_run_scores(oof, scored)[1]
    table = answered.drop_duplicates("image_id").set_index("image_id")[["label"]].assign(score=scores)
    labels = oof["label"].to_numpy(dtype=int)
    threshold = choose_submitted_threshold(
        labels, oof["score"].to_numpy(), scores.to_numpy(), run.config.threshold
    )
    table["answer"] = (table["score"] >= threshold).astype(int)
    plain = table.assign(answer=(table["score"] >= expected["score_threshold"]).astype(int))
    at_share = outcome(plain, share)["macro_f1_at_training_share"]
    figures = outcome(table, share) | {"macro_f1_at_training_share": at_share}
    for name in OUTCOME:
        yield ALL_FOLDS, f"test_{name}", figures[name]


def describe_setting(config: Config) -> str:
    """`shipped` or `reduced` if the run is set as a file of configs/models says, `own` otherwise."""
    for name in known_config_files("models"):
        try:
            shipped = with_model(config, name)
        except UserError:  # not every model suits every data set
            continue
        if _method_of(shipped) == _method_of(config):
            return "reduced" if name.endswith(("_reduced", "_tiny")) else "shipped"
    return "own"


def _method_of(config: Config) -> dict:
    """What makes a detector what it is: not its seed, nor where its weights lie, nor the machine."""
    values = config.model_dump(mode="json", include={"model", "train", "augment"})
    for key in ("seed", "workers", "precision"):
        del values["train"][key]
    values["model"]["options"].pop("teacher", None)
    if values["model"]["backbone"]:
        del values["model"]["backbone"]["weights"]
    return values | {"image_size": list(config.data.image_size)}


# --- the table, the page and the chart ----------------------------------------------------------------------


def write_comparison(values: pd.DataFrame, name: str, folder: Path) -> tuple[list[Path], str]:
    """Write compare.md, .csv, .html and .png of measure_runs's table; their paths and the Markdown."""
    summary = summarise_figures(values)
    table = build_text_table(summary)
    draw = partial(draw_comparison, values, summary)
    note = "" if "auroc" in summary else NO_AUROC
    markdown = html.build_markdown_table(table) + (f"\n{note}\n" if note else "")
    paths = {suffix: folder / f"compare.{suffix}" for suffix in ("md", "csv", "html", "png")}
    write_bytes(paths["md"], markdown.encode())
    write_csv(paths["csv"], summary)
    write_bytes(paths["png"], draw_png(draw))
    figure = [html.Text(note)] if note else []
    sections = [
        html.PageSection("Figure", [*figure, html.Charts([draw_svg(draw)], width=None)]),
        html.PageSection("Table", [html.Table(table), html.Text(NOTE)]),
    ]
    count = table.index.nunique()
    subtitle = f"{count} experiment" if count == 1 else f"{count} experiments"
    html.write_page(paths["html"], html.build_page(f"Comparison on {name}", subtitle, sections))
    return list(paths.values()), markdown


def summarise_figures(values: pd.DataFrame) -> pd.DataFrame:
    """A row for each experiment and category: every metric, and <metric>_spread (None for a single value).

    With categories, also the mean of their means, as papers report it, where all of them have the metric.
    """
    figures = values.groupby([*ROW_KEYS, "metric"])["value"].agg(["mean", "std"])
    figures = figures.unstack("metric")  # without sort=False, with which pandas 2.2 misplaces values
    order = pd.MultiIndex.from_frame(values[ROW_KEYS].drop_duplicates())
    figures = figures.reindex(order).reindex(columns=values["metric"].unique(), level="metric")
    first = {name: (name, "first") for name in RUN_COLUMNS}
    models = values[values["metric"] == "auroc"].groupby(ROW_KEYS, sort=False)  # a value of each
    about = models.agg(**first, folds=("fold", "nunique"), seeds=("source", "nunique"))
    table = pd.concat([about, figures["mean"], figures["std"].add_suffix("_spread")], axis=1).reset_index()
    table = table.dropna(axis=1, how="all")
    if table["category"].nunique() == 1:
        return table
    metrics = [name for name in table.columns if name in METRIC_FORMATS]
    parts = []
    for _, rows in table.groupby("experiment", sort=False):
        mean = rows[metrics].mean(skipna=False).to_frame().T.assign(category=MEAN)
        common = rows[["experiment", *RUN_COLUMNS, "folds", "seeds"]].iloc[0]
        parts += [rows, mean.assign(**common)]
    return pd.concat(parts)


def build_text_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The columns that hold anything, as texts: `0.812 ± 0.045`, `0.615 (0.505 to 0.726)`."""
    table = summary[["experiment", "category", "detector", "setting", "folds", "seeds"]].astype(str)
    if not summary["category"].any():
        table = table.drop(columns="category")
    if summary["seeds"].max() == 1:
        table = table.drop(columns="seeds")
    for name, (title, form) in METRIC_FORMATS.items():
        if name in summary and summary[name].notna().any():
            table[title] = [_cell(row, name, form) for _, row in summary.iterrows()]
    if summary["device"].any():
        table["device"] = summary["device"]
    return table.set_index("experiment")


def _cell(row: pd.Series, name: str, form: str) -> str:
    text = html.format_number(row[name], form)
    spread = row.get(f"{name}_spread")
    if name in COST_FIGURES:
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
    is_mean = summary["category"] == MEAN
    rows = summary[is_mean] if is_mean.any() else summary
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
            spread = None
            if len(dots) > 1:
                above = min(dots.std(), 1 - row[name])  # AUROC ends at 1
                spread = [[dots.std()], [max(0.0, above)]]
            axes.errorbar(row[name], height, xerr=spread, fmt="D", **style)
    axes.set_ylim(-0.7, len(rows) - 0.4)
    left, right = axes.get_xlim()
    axes.set_xlim(left, min(right, 1 + 0.05 * (1 - left)))  # AUROC ends at 1
    axes.set_xlabel("AUROC")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    what = "category" if (rows["category"] == MEAN).any() else "fold and seed"
    add_headline(axes, "Image AUROC", f"mean and standard deviation; a dot for each {what}")


def _draw_speed(axes: Axes, speeds: pd.Series) -> None:
    bars = axes.barh(range(len(speeds)), speeds.fillna(0), height=0.5, color="#72b7b2")
    axes.bar_label(bars, [html.format_number(speed, ",.1f") for speed in speeds], padding=4)
    axes.set_xlabel("images per second")
    axes.margins(x=0.15)
    add_headline(axes, "Speed of scoring", "with reading from the disk")
