"""Whether training images can be distinguished from test images: in words, and as a page."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from defects.config_schema import Config
from defects.data.fold_files import DataTables
from defects.evaluation.adversarial import (
    FILE,
    NEAR_HALF,
    appearance_table,
    compare_with_test,
    inputs,
    summarise_comparison,
    verdict,
)
from defects.files import write_json
from defects.reports import html
from defects.reports.charts import NORMAL_COLOUR, TEST_COLOUR, add_headline, add_histogram, draw_panel

NAMED_FEATURES = 5  # in words
DRAWN_FEATURES = 6
FEATURES_TEXT = (
    "The first chart: how much AUROC is lost when the values of a feature are shuffled; alone: AUROC of this "
    "feature, above 0.5 where test images have higher values. The others: how the features are distributed; "
    "the outermost hundredths are put into the last bins."
)


def write_adversarial(config: Config, tables: DataTables) -> tuple[list[str], list[Path]]:
    """Write adversarial.json and adversarial.html into the data set's folder; returns what to say, and paths.

    Without test images nothing is written, with too few no page.
    """
    table = appearance_table(config, tables)
    if not table["test"].any():
        return ["training against test images: there are no test images"], []
    training_share = float(tables.folds["label"].astype(float).mean())
    comparison = compare_with_test(table, training_share)
    stored = config.dataset_dir / FILE
    page = stored.with_suffix(".html")
    if comparison["auroc"] is None:
        page.unlink(missing_ok=True)
        paths = [stored]
    else:
        html.write_page(page, build_adversarial_page(config.data.name, table, comparison))
        paths = [stored, page]
    write_json(stored, comparison | {"inputs": inputs(config)})  # last: with it the comparison counts as done
    return describe_comparison(comparison), paths


def describe_comparison(comparison: dict[str, Any]) -> list[str]:
    """Lines about evaluation.adversarial.compare_with_test's result."""
    if comparison["auroc"] is None:
        return [summarise_comparison(comparison)]
    auroc_setting = f"AUROC {comparison['auroc_setting']:.3f}"
    lines = [
        summarise_comparison(comparison),
        f"by file, size and light alone, which a defect hardly moves: {auroc_setting}",
    ]
    if comparison["interval_90"][0] > 0.5:
        lines.append(
            "another share of defects explains this only if at least "
            f"{comparison['defects_to_explain']:.0%} of the test images are defective "
            f"({comparison['training_share']:.1%} of the training images are)"
        )
        for feature in choose_features(comparison):
            lines.append(f"  {feature['words']} (AUROC alone {feature['auroc']:.2f})")
    return lines


def choose_features(comparison: dict[str, Any], count: int = NAMED_FEATURES) -> list[dict[str, Any]]:
    """The most important features, and the one that tells most alone: of twins only one may be used."""

    def alone(feature: dict[str, Any]) -> float:
        return abs(feature["auroc"] - 0.5)

    used = []
    for feature in comparison["features"]:
        if feature["importance"] > 0 or alone(feature) >= NEAR_HALF:
            used.append(feature)
    best = max(comparison["features"], key=alone)
    return used[:count] if best in used[:count] else [*used[: count - 1], best]


def build_adversarial_page(name: str, table: pd.DataFrame, comparison: dict[str, Any]) -> str:
    """The page as HTML; `comparison` is evaluation.adversarial.compare's of the `table`, with an AUROC."""
    low, high = comparison["interval_90"]
    interval = f"90 % interval {low:.3f} to {high:.3f}"
    share = f"{comparison['training_share']:.1%} of the training images are defective"
    key_figures = [
        html.KeyFigure("AUROC, training against test", f"{comparison['auroc']:.3f}", interval),
        html.KeyFigure(
            "by file, size and light alone",
            f"{comparison['auroc_setting']:.3f}",
            "what a defect hardly moves",
        ),
        html.KeyFigure("defects needed to explain it", f"{comparison['defects_to_explain']:.0%}", share),
    ]
    features = choose_features(comparison, DRAWN_FEATURES)
    charts = [draw_panel(partial(draw_importance, features=features))]
    charts += [draw_panel(partial(draw_feature, table=table, name=feature["name"])) for feature in features]
    sections = [
        html.PageSection(
            f"Result: {verdict(comparison)}",
            [html.Lines([line.strip() for line in describe_comparison(comparison)])],
        ),
        html.PageSection("Features", [html.Text(FEATURES_TEXT), html.Charts(charts)]),
    ]
    subtitle = f"{comparison['train']:,} training and {comparison['test']:,} test images"
    return html.build_page(f"Training against test images of {name}", subtitle, sections, key_figures)


def draw_importance(axes: Axes, features: list[dict[str, Any]]) -> None:
    names = [feature["name"] for feature in features]
    bars = axes.barh(names, [max(0, feature["importance"]) for feature in features], color=TEST_COLOUR)
    texts = [f"{feature['importance']:.3f}, alone {feature['auroc']:.2f}" for feature in features]
    axes.bar_label(bars, texts, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.5)
    axes.set_xlabel("loss of AUROC when the feature is shuffled")
    add_headline(axes, "What tells them apart", "loss of AUROC, and AUROC of the feature alone")


def draw_feature(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Histograms in shares of the training and of the test images."""
    low, high = table[name].quantile([0.01, 0.99])
    bins = np.histogram_bin_edges(table[name].clip(low, high), 20)
    medians = []
    for is_test, label, colour in ((False, "training", NORMAL_COLOUR), (True, "test", TEST_COLOUR)):
        values = table.loc[table["test"] == is_test, name]
        medians.append(f"{label} {values.median():.3g}")
        add_histogram(axes, values.clip(low, high), bins, colour, label)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=6)
    axes.legend(loc="best")
    add_headline(axes, name, f"median: {', '.join(medians)}")
