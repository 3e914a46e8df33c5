"""Charts of an experiment: scores and errors over the threshold, ROC, precision-recall, training curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import expit, logit
from sklearn.metrics import precision_recall_curve, roc_curve

from defects.report.drawing import DEFECT, NORMAL, headline
from defects.scoring.estimate import rank_metrics
from defects.scoring.thresholds import all_cuts, equal_error

BINS = 40  # of the histograms
PROBABILITIES = [0.5, 0.01, 0.99, 0.1, 0.9, 1e-4, 0.9999, 1e-6, 1 - 1e-6, 0.3, 0.7]  # ticks, dearest first
ONE_FOLD, ALL_FOLDS = "#b0b0b0", "#222222"
TRAINING, UNSEEN = "#9ecae9", "#f58518"
METRICS = {  # of an epoch; everything else is a loss
    "accuracy": "accuracy at 0.5",
    "macro_f1": "macro-F1 at 0.5",
    "macro_f1_best": "macro-F1 at the best threshold",
    "auroc": "AUROC",
    "dice": "Dice at 0.5, all pairs",
}


def score_charts(oof: pd.DataFrame, expected: dict) -> Figure:
    """Four panels from `oof` (label, fold, raw, score); with one class only the first two.

    `expected` is scoring.estimate's; ROC and precision-recall are drawn for each fold from its raw scores,
    and for all folds together from the scores on the common scale.
    """
    both = oof["label"].nunique() == 2
    figure = Figure(figsize=(13, 8.4 if both else 4.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    axes = figure.subplots(2 if both else 1, 2).ravel()
    draw_distributions(axes[0], oof, expected)
    draw_error_rates(axes[1], oof, expected)
    if both:
        draw_roc(axes[2], oof, expected)
        draw_precision_recall(axes[3], oof, expected)
    return figure


def draw_distributions(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    """Histograms in per cent of each class, and a tick for every image below them."""
    bins = np.histogram_bin_edges(oof["score"], BINS)
    for label, name, colour in ((0, "normal", NORMAL), (1, "defective", DEFECT)):
        scores = oof.loc[oof["label"] == label, "score"]
        if scores.empty:
            continue
        style = {"histtype": "stepfilled", "fc": (colour, 0.25), "ec": colour, "lw": 1.5}
        shares = np.full(len(scores), 1 / len(scores))
        axes.hist(scores, bins, weights=shares, label=f"{name} ({len(scores):,} images)", **style)
        height = np.full(len(scores), 0.03 + 0.05 * label)
        below = axes.inset_axes([0, -0.11, 1, 0.1], sharex=axes)
        below.plot(scores, height, "|", color=colour, ms=6, alpha=0.5)
        below.set(ylim=(0, 0.11))
        below.set_axis_off()
    axes.tick_params(axis="x", pad=22)
    _share_axis(axes)
    _threshold_axis(axes, oof, expected)
    headline(axes, "Scores", "of each image, by the model that did not learn from it")


def draw_error_rates(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    """Shares of defects that pass and of normal images that are rejected, over the threshold."""
    labels, scores = oof["label"].to_numpy(dtype=int), oof["score"].to_numpy()
    cuts = all_cuts(labels, scores)
    for errors, total, colour, rate in (
        (cuts.fp, cuts.normal, NORMAL, "false_rejection"),
        (cuts.fn, cuts.defects, DEFECT, "false_acceptance"),
    ):
        if total:
            label = f"{rate.replace('_', ' ')}, {expected[rate]:.1%} at the threshold"
            axes.step(cuts.threshold, errors / total, color=colour, where="pre", label=label)
    if expected["equal_error_rate"] is not None:
        threshold, rate = equal_error(labels, scores)
        axes.plot(threshold, rate, "o", ms=8, mfc="none", mec="black", label=f"equal error, {rate:.1%}")
    _share_axis(axes)
    _threshold_axis(axes, oof, expected)
    headline(axes, "Errors over the threshold", "defects that pass; normal images that are rejected")


def draw_roc(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    for _, rows in oof.groupby("fold"):
        if rows["label"].nunique() == 2:
            axes.plot(*roc_curve(rows["label"], rows["raw"])[:2], color=ONE_FOLD, lw=0.8)
    rejected, found, _ = roc_curve(oof["label"], oof["score"])
    axes.plot(rejected, found, color=ALL_FOLDS, lw=2, label=f"all folds, AUROC {expected['auroc']:.3f}")
    axes.plot([0, 1], [0, 1], ":", color=ONE_FOLD)
    _mark(axes, expected["false_rejection"], 1 - expected["false_acceptance"])
    _unit_square(axes, "share of the normal images that is rejected", "share of the defects that is found")
    headline(axes, "ROC", _spread(oof, "auroc"))


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
        _mark(axes, 1 - expected["false_acceptance"], tp / (tp + fp))
    _unit_square(axes, "recall: share of the defects that is found", "precision: defects among the rejected")
    headline(axes, "Precision and recall", _spread(oof, "average_precision"))


def training_charts(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """A panel for every loss and metric of the epochs, a line for each fold; None without epochs."""
    names = _panel_names(histories)
    if not names:
        return None
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(13, 3.6 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _draw_history(axes, name, histories)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def _panel_names(histories: dict[str, pd.DataFrame]) -> list[str]:
    """`loss` first, then the other losses in their order, then the metrics."""
    columns = [name.partition("_") for table in histories.values() for name in table.columns]
    names = dict.fromkeys(name for side, _, name in columns if side in ("train", "val"))
    return sorted(names, key=lambda name: (name in METRICS, name != "loss"))


def _draw_history(axes: Axes, name: str, histories: dict[str, pd.DataFrame]) -> None:
    for side, colour, label in (("train", TRAINING, "training"), ("val", UNSEEN, "unseen images")):
        tables = [table for table in histories.values() if f"{side}_{name}" in table]
        for table in tables:
            values = table[["epoch", f"{side}_{name}"]].dropna()
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
    headline(axes, METRICS.get(name, name.replace("_", " ")), "a line for each fold")


def _share_axis(axes: Axes) -> None:
    axes.set_ylabel("share of the class")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _threshold_axis(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    """Log-odds, written as the probabilities they stand for, and the threshold."""
    label = f"threshold {expected['threshold']:.3g}, by {expected['rule']}"
    axes.axvline(expected["score_threshold"], color=ALL_FOLDS, ls="--", lw=1.2, label=label)
    low, high = oof["score"].min(), oof["score"].max()
    margin = 0.04 * (high - low) + 1e-6
    axes.set_xlim(low - margin, high + margin)
    ticks = _ticks(low - margin, high + margin)
    axes.set_xticks(ticks, [f"{value:.6g}" for value in expit(ticks)])
    axes.set_xlabel("score of a defect, 0 to 1, on the scale of log-odds")
    axes.legend(loc="best")


def _ticks(low: float, high: float) -> np.ndarray:
    """Log-odds of round probabilities, as many as can be told apart; of any where the range is small."""
    kept: list[float] = []
    for value in logit(PROBABILITIES):
        if low < value < high and all(abs(value - other) > 0.06 * (high - low) for other in kept):
            kept.append(value)
    if len(kept) < 3:
        return logit(np.round(expit(np.linspace(low, high, 7)[1:-1]), 4).clip(1e-4, 1 - 1e-4))
    return np.array(kept)


def _unit_square(axes: Axes, below: str, left: str) -> None:
    axes.set(xlabel=below, ylabel=left, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    axes.legend(loc="best")


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", ms=8, mfc="none", mec=DEFECT, mew=1.5, label="at the threshold")


def _spread(oof: pd.DataFrame, metric: str) -> str:
    """`grey: each fold (0.79 to 0.85)`"""
    found = [rank_metrics(rows["label"], rows["raw"])[metric] for _, rows in oof.groupby("fold")]
    values = [value for value in found if value is not None]
    return f"grey: each fold ({min(values):.2f} to {max(values):.2f})" if values else "one class in each fold"
