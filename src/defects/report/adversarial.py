"""Whether training images can be told from test images, in words and as a picture."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defects.config import Config
from defects.files import write_json
from defects.report.drawing import NORMAL, headline, png
from defects.report.explore import COLOURS
from defects.scoring.adversarial import (
    FILE,
    NEAR_HALF,
    compare,
    in_short,
    inputs,
    training_share,
    verdict,
)
from defects.scoring.appearance import appearance_table
from defects.writing import write_bytes

TOLD = 5  # features named in words
PANELS = 6  # features drawn


def write_adversarial(config: Config) -> tuple[list[str], list[Path]]:
    """Write adversarial.json and adversarial.png into the data set's folder; returns what to say, and paths.

    Without test images nothing is written, with too few no picture.
    """
    table = appearance_table(config)
    if not table["test"].any():
        return ["training against test images: there are no test images"], []
    found, folder = compare(table, training_share(config)), config.dataset_dir
    paths = [folder / FILE, folder / "adversarial.png"]
    if found["auroc"] is None:
        paths.pop().unlink(missing_ok=True)
    else:
        write_bytes(paths[1], png(partial(draw_adversarial, table, found)))
    write_json(
        folder / FILE, found | {"inputs": inputs(config)}
    )  # last: with it the comparison counts as done
    return in_words(found), paths


def in_words(found: dict[str, Any]) -> list[str]:
    """Lines about scoring.adversarial.compare's result."""
    if found["auroc"] is None:
        return [in_short(found)]
    lines = [
        in_short(found),
        f"by file, size and light alone, which a defect hardly moves: AUROC {found['auroc_setting']:.3f}",
    ]
    if found["interval_90"][0] > 0.5:
        lines.append(
            "another share of defects explains this only if at least "
            f"{found['defects_to_explain']:.0%} of the test images are defective "
            f"({found['training_share']:.1%} of the training images are)"
        )
        lines += [f"  {feature['words']} (AUROC alone {feature['auroc']:.2f})" for feature in telling(found)]
    return lines


def telling(found: dict[str, Any], count: int = TOLD) -> list[dict[str, Any]]:
    """The most important features, and the one that tells most alone: of twins only one may be used."""

    def alone(feature: dict[str, Any]) -> float:
        return abs(feature["auroc"] - 0.5)

    used = [each for each in found["features"] if each["importance"] > 0 or alone(each) >= NEAR_HALF]
    best = max(found["features"], key=alone)
    return used[:count] if best in used[:count] else [*used[: count - 1], best]


def draw_adversarial(table: pd.DataFrame, found: dict[str, Any]) -> Figure:
    """Importances to the left, to the right the distributions of these features on both sides."""
    features = telling(found, PANELS)
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    low, high = found["interval_90"]
    title = f"training against test images: AUROC {found['auroc']:.3f} ({low:.3f} to {high:.3f})"
    figure.suptitle(f"{title}, {verdict(found)}", fontsize=13, weight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
    _draw_importance(left.subplots(), features)
    panels = right.subplots(2, PANELS // 2).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, feature in zip(panels, features, strict=False):
        _draw_feature(axes, table, feature["name"])
    panels[0].legend()
    return figure


def _draw_importance(axes: Axes, features: list[dict[str, Any]]) -> None:
    bars = axes.barh([each["name"] for each in features], [max(0, each["importance"]) for each in features])
    axes.bar_label(
        bars, [f"{each['importance']:.3f}, alone {each['auroc']:.2f}" for each in features], padding=3
    )
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set_xlabel("loss of AUROC when the feature is shuffled")
    headline(axes, "What tells them apart", "alone: AUROC of the feature, above 0.5: higher in test")


def _draw_feature(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Histograms in shares of each side; the outermost hundredths are put into the last bins."""
    axes.set_axis_on()
    low, high = table[name].quantile([0.01, 0.99])
    bins = np.histogram_bin_edges(table[name].clip(low, high), 20)
    for test, label, colour in ((False, "training", NORMAL), (True, "test", COLOURS["test"])):
        values = table.loc[table["test"] == test, name].clip(low, high)
        style = {"histtype": "stepfilled", "fc": (colour, 0.25), "ec": colour, "lw": 1.5}
        axes.hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=label, **style)
    axes.set_title(name, fontsize=9)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
