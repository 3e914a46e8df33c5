"""Charts of what may be claimed: detection by size, expected cost, scores by the number of defects."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from defects.config_schema import CostConfig
from defects.evaluation.detection_by_size import DetectionCurve, format_size
from defects.evaluation.display_scales import AT_THRESHOLD, compute_defect_scores
from defects.evaluation.fewer_defects import METRICS
from defects.evaluation.thresholds import trace_expected_cost
from defects.reports.charts import (
    ALL_FOLDS_COLOUR,
    DEFECT_COLOUR,
    GREY,
    NORMAL_COLOUR,
    add_headline,
)

MEASURE_NAMES = {"longest_side": "longest side", "area": "area"}
BAND_ALPHA = 0.18


def draw_detection_curve(axes: Axes, curve: DetectionCurve, sizes: np.ndarray, detected: np.ndarray) -> None:
    """The curve with its band, and a mark for every defect: detected ones on top, missed ones below.

    `sizes` [N] in the unit of the curve, NaN where unknown; detected bool [N].
    """
    grid = curve.list_sizes()
    low, high = curve.bound(grid)
    axes.fill_between(grid, low, high, color=NORMAL_COLOUR, alpha=BAND_ALPHA, lw=0, label="95 % bounds")
    axes.plot(grid, curve.predict(grid), color=NORMAL_COLOUR, lw=2, label="probability of detection")
    for is_hit, height, colour in ((True, 1.04, NORMAL_COLOUR), (False, -0.04, DEFECT_COLOUR)):
        of_kind = sizes[(detected == is_hit) & np.isfinite(sizes)]
        axes.plot(of_kind, np.full(len(of_kind), height), "|", color=colour, ms=9, alpha=0.7)
    for name, size, style in (("a90", curve.a90, ":"), ("a90/95", curve.a90_95, "--")):
        if size is not None:
            text = f"{name}, {format_size(size, curve.unit)}"
            axes.axvline(size, color=ALL_FOLDS_COLOUR, ls=style, lw=1.2, label=text)
    axes.axhline(0.9, color=GREY, lw=0.6)
    axes.set_xscale("log")
    format_log_axis(axes)
    axes.set_xlabel(f"{MEASURE_NAMES[curve.measure]} of the largest defect, {curve.unit}")
    axes.set_ylim(-0.08, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.08))  # above the marks of missed defects
    detail = f"{curve.detected} of {curve.images} defects are detected: marks on top; below: missed"
    add_headline(axes, f"Detection by {MEASURE_NAMES[curve.measure]}", detail)


def draw_expected_cost(
    axes: Axes, labels: np.ndarray, scores: np.ndarray, costs: CostConfig, threshold: float
) -> None:
    """Expected cost of an image over all thresholds; `threshold` (log-odds) is the chosen one."""
    curve = trace_expected_cost(labels, scores, costs)
    defect_scores = compute_defect_scores(curve.threshold, threshold)
    axes.step(defect_scores, curve.cost, where="pre", color=NORMAL_COLOUR, lw=1.8)
    axes.axvline(AT_THRESHOLD, color=ALL_FOLDS_COLOUR, ls="--", lw=1.2, label="chosen threshold")
    least = curve.cost[curve.best]
    axes.plot(
        defect_scores[curve.best], least, "o", ms=8, mfc="none", mec="black", label=f"least cost, {least:.3g}"
    )
    axes.set_ylim(0, None)
    axes.set(xlabel="defect score from which an image is rejected", ylabel="expected cost of an image")
    axes.legend(loc="best")
    detail = f"an escape costs {costs.escape:g}, a false alarm {costs.false_alarm:g}"
    if costs.defect_share is not None:
        detail += f"; {100 * costs.defect_share:g} % of the images are defective"
    add_headline(axes, "Expected cost over the threshold", detail)


def draw_learning_curve(axes: Axes, curve: dict[str, Any], metric: str) -> None:
    """Scores of all draws, their mean and standard deviation, and the extrapolation; see fewer_defects."""
    draws = pd.DataFrame(curve["draws"])
    summary = pd.DataFrame(curve["summary"])
    mean = summary[f"{metric}_mean"]
    std = summary[f"{metric}_std"]
    axes.plot(draws["defects"], draws[metric], ".", color=NORMAL_COLOUR, alpha=0.4, ms=5)
    axes.plot(summary["defects"], mean, color=NORMAL_COLOUR, lw=2, label="mean of the draws")
    band = {"color": NORMAL_COLOUR, "alpha": BAND_ALPHA, "lw": 0, "label": "± standard deviation"}
    axes.fill_between(summary["defects"], mean - std, mean + std, **band)
    reached = curve["extrapolation"][metric]
    if reached is not None:
        axes.plot(reached["defects"], reached["score"], "--", color=DEFECT_COLOUR, lw=1.8, label="power law")
        band = {"color": DEFECT_COLOUR, "alpha": BAND_ALPHA, "lw": 0, "label": "its 90 % band"}
        axes.fill_between(reached["defects"], reached["low"], reached["high"], **band)
    axes.set_xscale("log")
    format_log_axis(axes)
    axes.set_xlabel("defects to learn from")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1.02))
    axes.legend(loc="best")
    add_headline(axes, f"{METRICS[metric]} over the number of defects", "a dot for each draw of whole groups")


def format_log_axis(axes: Axes) -> None:
    """Plain numbers below a logarithmic axis, also between powers of ten where it spans few of them."""
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low < 200 else (1,)
    axes.xaxis.get_major_locator().set_params(subs=subs)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
