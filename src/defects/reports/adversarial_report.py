"""Whether training images can be told from test images: in words, and as a page."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from defects.config import Config
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
from defects.reports.charts import NORMAL_COLOUR, TEST_COLOUR, add_headline, draw_panel
from defects.reports.html import Charts, KeyFigure, Lines, PageSection, Text, build_page
from defects.writing import write_bytes

NAMED_FEATURES = 5  # in words
DRAWN_FEATURES = 6
CHARTS = (
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
    found = compare_with_test(table, training_share)
    stored = config.dataset_dir / FILE
    page = stored.with_suffix(".html")
    if found["auroc"] is None:
        page.unlink(missing_ok=True)
        paths = [stored]
    else:
        write_bytes(page, build_adversarial_page(config.data.name, table, found).encode())
        paths = [stored, page]
    write_json(stored, found | {"inputs": inputs(config)})  # last: with it the comparison counts as done
    return describe_comparison(found), paths


def describe_comparison(found: dict[str, Any]) -> list[str]:
    """Lines about evaluation.adversarial.compare's result."""
    if found["auroc"] is None:
        return [summarise_comparison(found)]
    lines = [
        summarise_comparison(found),
        f"by file, size and light alone, which a defect hardly moves: AUROC {found['auroc_setting']:.3f}",
    ]
    if found["interval_90"][0] > 0.5:
        lines.append(
            "another share of defects explains this only if at least "
            f"{found['defects_to_explain']:.0%} of the test images are defective "
            f"({found['training_share']:.1%} of the training images are)"
        )
        for feature in choose_features(found):
            lines.append(f"  {feature['words']} (AUROC alone {feature['auroc']:.2f})")
    return lines


def choose_features(found: dict[str, Any], count: int = NAMED_FEATURES) -> list[dict[str, Any]]:
    """The most important features, and the one that tells most alone: of twins only one may be used."""

    def alone(feature: dict[str, Any]) -> float:
        return abs(feature["auroc"] - 0.5)

    used = []
    for feature in found["features"]:
        if feature["importance"] > 0 or alone(feature) >= NEAR_HALF:
            used.append(feature)
    best = max(found["features"], key=alone)
    return used[:count] if best in used[:count] else [*used[: count - 1], best]


def build_adversarial_page(name: str, table: pd.DataFrame, found: dict[str, Any]) -> str:
    """The page as HTML; `found` is evaluation.adversarial.compare's of the `table`, with an AUROC."""
    low, high = found["interval_90"]
    interval = f"90 % interval {low:.3f} to {high:.3f}"
    share = f"{found['training_share']:.1%} of the training images are defective"
    key_figures = [
        KeyFigure("AUROC, training against test", f"{found['auroc']:.3f}", interval),
        KeyFigure(
            "by file, size and light alone", f"{found['auroc_setting']:.3f}", "what a defect hardly moves"
        ),
        KeyFigure("defects needed to explain it", f"{found['defects_to_explain']:.0%}", share),
    ]
    features = choose_features(found, DRAWN_FEATURES)
    charts = [draw_panel(partial(draw_importance, features=features))]
    charts += [draw_panel(partial(draw_feature, table=table, name=feature["name"])) for feature in features]
    sections = [
        PageSection(
            f"Result: {verdict(found)}", [Lines([line.strip() for line in describe_comparison(found)])]
        ),
        PageSection("Features", [Text(CHARTS), Charts(charts)]),
    ]
    subtitle = f"{found['train']:,} training and {found['test']:,} test images"
    return build_page(f"Training against test images of {name}", subtitle, sections, key_figures)


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
        style = {"histtype": "stepfilled", "fc": (colour, 0.25), "ec": colour, "lw": 1.5}
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values.clip(low, high), bins, weights=shares, label=label, **style)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=6)
    axes.legend(loc="best")
    add_headline(axes, name, f"median: {', '.join(medians)}")
