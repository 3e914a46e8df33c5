"""Charts of a run: scores and errors over the threshold, ROC, precision and recall, training curves."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from defects.evaluation.display_scales import AT_THRESHOLD, compute_defect_scores
from defects.evaluation.metrics import rank_metrics
from defects.evaluation.thresholds import count_errors_by_threshold, equal_error
from defects.reports.charts import DEFECT_COLOUR, NORMAL_COLOUR, add_headline, draw_panel

BINS = 40  # of the histograms
MOST_MARKS = 1500  # drawn as shapes; more of them become pixels
ONE_FOLD, ALL_FOLDS = "#b0b0b0", "#222222"
TRAINING, UNSEEN = "#9ecae9", "#f58518"
METRICS = {  # of an epoch; everything else is a loss
    "accuracy": "accuracy at 0.5",
    "macro_f1": "macro-F1 at 0.5",
    "macro_f1_best": "macro-F1 at the best threshold",
    "auroc": "AUROC",
    "dice": "Dice at 0.5, all pairs",
}


def draw_score_charts(oof: pd.DataFrame, expected: dict) -> list[str]:
    """SVGs from `oof` (label, fold, raw, score); with one class only the first two of four.

    `expected` is evaluation.estimate's; ROC and precision-recall are drawn for each fold from its raw scores,
    and for all folds together from the scores on the common scale.
    """
    panels = [draw_distributions, draw_error_rates]
    if oof["label"].nunique() == 2:
        panels += [draw_roc, draw_precision_recall]
    return [draw_panel(partial(panel, oof=oof, expected=expected)) for panel in panels]


def draw_distributions(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    """Histograms in per cent of each class, and a tick for every image below them."""
    scores = compute_defect_scores(oof["score"], expected["score_threshold"])
    bins = np.histogram_bin_edges(scores, BINS)
    for label, name, colour in ((0, "normal", NORMAL_COLOUR), (1, "defective", DEFECT_COLOUR)):
        of_class = scores[oof["label"] == label]
        if not len(of_class):
            continue
        style = {"histtype": "stepfilled", "fc": (colour, 0.25), "ec": colour, "lw": 1.5}
        shares = np.full(len(of_class), 1 / len(of_class))
        axes.hist(of_class, bins, weights=shares, label=f"{name} ({len(of_class):,} images)", **style)
        height = np.full(len(of_class), 0.03 + 0.05 * label)
        below = axes.inset_axes([0, -0.11, 1, 0.1], sharex=axes)
        is_dense = len(of_class) > MOST_MARKS
        below.plot(of_class, height, "|", color=colour, ms=6, alpha=0.5, rasterized=is_dense)
        below.set(ylim=(0, 0.11))
        below.set_axis_off()
    axes.tick_params(axis="x", pad=22)
    _format_shares(axes)
    _format_defect_scores(axes, scores, expected)
    add_headline(axes, "Scores", "of each image, by the model that did not learn from it")


def draw_error_rates(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    """Shares of defects that pass and of normal images that are rejected, over the threshold."""
    labels = oof["label"].to_numpy(dtype=int)
    log_odds = oof["score"].to_numpy()
    cuts = count_errors_by_threshold(labels, log_odds)
    thresholds = compute_defect_scores(cuts.threshold, expected["score_threshold"])
    for errors, total, colour, rate in (
        (cuts.fp, cuts.normal, NORMAL_COLOUR, "false_rejection"),
        (cuts.fn, cuts.defects, DEFECT_COLOUR, "false_acceptance"),
    ):
        if total:
            label = f"{rate.replace('_', ' ')}, {expected[rate]:.1%} at the threshold"
            axes.step(thresholds, errors / total, color=colour, where="pre", label=label)
    if expected["equal_error_rate"] is not None:
        threshold, rate = equal_error(labels, log_odds)
        threshold = compute_defect_scores(threshold, expected["score_threshold"])
        axes.plot(threshold, rate, "o", ms=8, mfc="none", mec="black", label=f"equal error, {rate:.1%}")
    _format_shares(axes)
    _format_defect_scores(axes, thresholds, expected)
    add_headline(axes, "Errors over the threshold", "defects that pass; normal images that are rejected")


def draw_roc(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    for _, rows in oof.groupby("fold"):
        if rows["label"].nunique() == 2:
            axes.plot(*roc_curve(rows["label"], rows["raw"])[:2], color=ONE_FOLD, lw=0.8)
    rejected, detected, _ = roc_curve(oof["label"], oof["score"])
    axes.plot(rejected, detected, color=ALL_FOLDS, lw=2, label=f"all folds, AUROC {expected['auroc']:.3f}")
    axes.plot([0, 1], [0, 1], ":", color=ONE_FOLD)
    _mark_threshold(axes, expected["false_rejection"], 1 - expected["false_acceptance"])
    _format_unit_square(
        axes, "share of the normal images that is rejected", "share of the defects that is detected"
    )
    add_headline(axes, "ROC", _describe_folds(oof, "auroc"))


def draw_precision_recall(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    for _, rows in oof.groupby("fold"):
        if rows["label"].any():
            precision, recall, _ = precision_recall_curve(rows["label"], rows["raw"])
            axes.step(recall, precision, color=ONE_FOLD, lw=0.8, where="post")
    precision, recall, _ = precision_recall_curve(oof["label"], oof["score"])
    text = f"all folds, average precision {expected['average_precision']:.3f}"
    axes.step(recall, precision, color=ALL_FOLDS, lw=2, where="post", label=text)
    axes.axhline(oof["label"].mean(), ls=":", color=ONE_FOLD)
    (_, fp), (_, tp) = expected["confusion_matrix"]
    if tp + fp:
        _mark_threshold(axes, 1 - expected["false_acceptance"], tp / (tp + fp))
    _format_unit_square(
        axes, "recall: share of the defects that is detected", "precision: defects among the rejected"
    )
    add_headline(axes, "Precision and recall", _describe_folds(oof, "average_precision"))


def draw_training_charts(histories: dict[str, pd.DataFrame]) -> list[str]:
    """An SVG for every loss and metric of the epochs, a line for each fold; none without epochs."""
    names = list_panels(histories)
    return [draw_panel(partial(draw_history, name=name, histories=histories)) for name in names]


def list_panels(histories: dict[str, pd.DataFrame]) -> list[str]:
    """`loss` first, then the other losses in their order, then the metrics."""
    columns = [name.partition("_") for table in histories.values() for name in table.columns]
    names = dict.fromkeys(name for part, _, name in columns if part in ("train", "val"))
    return sorted(names, key=lambda name: (name in METRICS, name != "loss"))


def draw_history(axes: Axes, name: str, histories: dict[str, pd.DataFrame]) -> None:
    """One loss or metric over the epochs."""
    for part, colour, label in (("train", TRAINING, "training"), ("val", UNSEEN, "unseen images")):
        tables = [table for table in histories.values() if f"{part}_{name}" in table]
        for table in tables:
            values = table[["epoch", f"{part}_{name}"]].dropna()
            axes.plot(*values.to_numpy().T, color=colour, lw=1.3, marker=".", ms=4, label=label)
            label = None  # one entry in the legend
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    low, high = axes.get_ylim()
    if name in METRICS:
        axes.set_ylim(min(0.4, low), 1.02)
    elif low > 0:
        axes.set_ylim(0, 1.05 * high)
    axes.legend(loc="best")
    add_headline(axes, METRICS.get(name, name.replace("_", " ")), "a line for each fold")


def _format_shares(axes: Axes) -> None:
    axes.set_ylabel("share of the class")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _format_defect_scores(axes: Axes, scores: np.ndarray, expected: dict) -> None:
    """The axis of defect scores, and the threshold."""
    axes.axvline(AT_THRESHOLD, color=ALL_FOLDS, ls="--", lw=1.2, label=f"threshold, by {expected['rule']}")
    low = min(scores.min(), AT_THRESHOLD)
    high = max(scores.max(), AT_THRESHOLD)
    margin = 0.04 * (high - low) + 0.5
    axes.set_xlim(low - margin, high + margin)
    axes.set_xlabel("defect score")
    axes.legend(loc="best")


def _format_unit_square(axes: Axes, below: str, left: str) -> None:
    axes.set(xlabel=below, ylabel=left, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    axes.legend(loc="best")


def _mark_threshold(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", ms=8, mfc="none", mec=DEFECT_COLOUR, mew=1.5, label="at the threshold")


def _describe_folds(oof: pd.DataFrame, metric: str) -> str:
    """`grey: each fold (0.79 to 0.85)`"""
    figures = [rank_metrics(rows["label"], rows["raw"])[metric] for _, rows in oof.groupby("fold")]
    values = [value for value in figures if value is not None]
    return f"grey: each fold ({min(values):.2f} to {max(values):.2f})" if values else "one class in each fold"
