"""Charts of all pages: their style, the fonts for the letters of any name, SVG and PNG; those of a run.

Charts on pages are SVG whose texts stay texts: they can be searched and are sharp at any size. matplotlib
lays them out with installed fonts, the browser draws them with its own.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve, roc_curve

from defects.evaluation.decision import describe_rule
from defects.evaluation.display_scales import AT_THRESHOLD, compute_defect_scores
from defects.evaluation.metrics import rank_metrics
from defects.evaluation.thresholds import count_errors_by_threshold, equal_error
from defects.messages import shorten_names

Drawn = TypeVar("Drawn")

SVG_METADATA = ("Creator", "Date", "Format", "Type")  # left out
DPI = 100  # pixels per inch of a PNG, and of what is drawn as pixels within an SVG
LONGEST_NAME = 24  # letters
BINS = 40  # of the histograms of scores
MOST_MARKS = 1500  # drawn as shapes; more of them become pixels
ONE_FOLD_COLOUR = "#b0b0b0"
ALL_FOLDS_COLOUR = "#222222"
TRAINING_COLOUR = "#9ecae9"  # of epochs, as the next one
VALIDATION_COLOUR = "#f58518"
METRICS = {  # of an epoch; everything else is a loss
    "accuracy": "accuracy at 0.5",
    "macro_f1": "macro-F1 at 0.5",
    "macro_f1_best": "macro-F1 at the best threshold",
    "auroc": "AUROC",
    "dice": "Dice at 0.5, all pairs",
}
CHART_INCHES = (6.2, 3.9)  # of a chart that stands beside others
DEFECT_COLOUR = "#e45756"  # on every page, as the next two
NORMAL_COLOUR = "#4c78a8"
TEST_COLOUR = "#8a8a8a"
GREY = "#5f6773"  # of axes and details
BASE_FONT = "DejaVu Sans"  # comes with matplotlib
# The first choice for letters that it lacks: fonts with Chinese, Japanese and Korean ones.
WIDE_FONTS = ["Noto Sans CJK SC", "Microsoft YaHei", "Malgun Gothic", "Hiragino Sans", "WenQuanYi Zen Hei"]
BLANK_FONTS = ("Last Resort", "Adobe Blank", "AND-Regular")  # "have" every letter, as a box or as nothing
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning

_fallback_fonts: list[str] = []  # of this process, for letters that were missing so far
_reported_letters: set[str] = set()


def draw_with_fonts(draw: Callable[[], Drawn]) -> tuple[Drawn, set[str]]:
    """What `draw` returns, in the style of all pages, and the letters that no installed font has.

    It is called again with other installed fonts where the first ones lack letters.
    """
    drawn, missing = _draw_once(draw)
    fonts = [font for font in find_fonts(missing) if font not in _fallback_fonts]
    if fonts:
        _fallback_fonts.extend(fonts)
        drawn, missing = _draw_once(draw)
    return drawn, missing


def find_fonts(letters: set[str]) -> list[str]:
    """Installed font families that have the letters between them, or as many of them as any has."""
    if not letters:
        return []
    entries = sorted(
        font_manager.fontManager.ttflist, key=lambda font: (font.name not in WIDE_FONTS, font.name)
    )
    letters_by_font: dict[str, set[str]] = {}
    for entry in entries:
        if entry.name in letters_by_font or entry.name.startswith(BLANK_FONTS):
            continue
        with suppress(RuntimeError, OSError):  # fonts of pictures, and files that are gone
            charmap = font_manager.get_font(entry.fname).get_charmap()
            letters_by_font[entry.name] = {letter for letter in letters if ord(letter) in charmap}
    fonts = []
    missing = set(letters)
    while missing and letters_by_font:
        best = max(letters_by_font, key=lambda name: len(letters_by_font[name] & missing))
        if not letters_by_font[best] & missing:
            break
        missing -= letters_by_font.pop(best)
        fonts.append(best)
    return fonts


def _draw_once(draw: Callable[[], Drawn]) -> tuple[Drawn, set[str]]:
    """What it returns, and the letters that no font in use has."""
    with _page_style(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = draw()
    missing = set()
    for warning in caught:
        glyph = MISSING_GLYPH.match(str(warning.message))
        if glyph:
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return drawn, missing


@contextmanager
def _page_style() -> Iterator[None]:
    """Fonts of all pages, to be in force while a figure is built and drawn."""
    wide = [font for font in WIDE_FONTS if font in font_manager.get_font_names()]
    fonts = [BASE_FONT, *wide, *_fallback_fonts]
    settings = {
        "font.family": fonts,
        "font.size": 9,
        "text.parse_math": False,  # `$` in a name is a `$`
        "axes.edgecolor": GREY,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
    }
    with mpl.rc_context(settings):
        yield


def draw_png(build: Callable[[], Figure]) -> bytes:
    """The figure that `build` makes, as PNG. Says in one line which letters no installed font has."""

    def draw() -> bytes:
        buffer = io.BytesIO()
        build().savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    content, missing = draw_with_fonts(draw)
    unreported = sorted(missing - _reported_letters)
    if unreported:
        _reported_letters.update(unreported)
        print(
            f"note: no installed font has the letters {shorten_names(unreported)}: they are drawn as boxes; "
            "install a font that has them, such as Noto Sans CJK"
        )
    return content


def draw_svg(build: Callable[[], Figure]) -> str:
    """The figure that `build` makes, as an SVG element to be put into a page; equal figures, equal texts."""

    def draw() -> str:
        buffer = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chart"}):
            metadata = dict.fromkeys(SVG_METADATA)
            build().savefig(buffer, format="svg", dpi=DPI, transparent=True, metadata=metadata)
        return buffer.getvalue()

    text, _ = draw_with_fonts(draw)
    element = text[text.index("<svg") :]
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)  # HTML knows them
    # Ids of groups are the same in every chart, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", element)


def shorten_name(text: str) -> str:
    """Long names lose their middle: files of one folder often differ at the end only."""
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[: half - 1]}…{text[-half:]}"


def draw_panel(panel: Callable[[Axes], None]) -> str:
    """One chart of the common size, as draw_svg."""

    def build() -> Figure:
        figure = Figure(figsize=CHART_INCHES, layout="constrained")
        panel(figure.subplots())
        return figure

    return draw_svg(build)


def add_headline(axes: Axes, text: str, detail: str) -> None:
    """A bold title and, below it, a line of detail; the lines to the right and above are taken away."""
    axes.set_title(text, loc="left", weight="bold", pad=20)
    axes.text(0, 1.02, detail, transform=axes.transAxes, va="bottom", color=GREY)
    axes.spines[["top", "right"]].set_visible(False)


def add_histogram(axes: Axes, values: ArrayLike, bins: np.ndarray, colour: str, label: str) -> None:
    """An outlined histogram in shares of `values` [N]: classes and parts differ much in number."""
    shares = np.full(len(values), 1 / len(values))
    style = {"histtype": "stepfilled", "fc": to_rgba(colour, 0.25), "ec": colour, "lw": 1.5}
    axes.hist(values, bins, weights=shares, label=label, **style)


# --- the charts of a run -----------------------------------------------------------------------------------


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
    """Histograms in shares of the class, and a tick for every image below them."""
    scores = compute_defect_scores(oof["score"], expected["score_threshold"])
    bins = np.histogram_bin_edges(scores, BINS)
    for label, name, colour in ((0, "normal", NORMAL_COLOUR), (1, "defective", DEFECT_COLOUR)):
        of_class = scores[oof["label"] == label]
        if not len(of_class):
            continue
        add_histogram(axes, of_class, bins, colour, f"{name} ({len(of_class):,} images)")
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
    counts = count_errors_by_threshold(labels, log_odds)
    thresholds = compute_defect_scores(counts.threshold, expected["score_threshold"])
    for errors, total, colour, rate in (
        (counts.fp, counts.normal, NORMAL_COLOUR, "false_rejection"),
        (counts.fn, counts.defects, DEFECT_COLOUR, "false_acceptance"),
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
            axes.plot(*roc_curve(rows["label"], rows["raw"])[:2], color=ONE_FOLD_COLOUR, lw=0.8)
    rejected, detected, _ = roc_curve(oof["label"], oof["score"])
    axes.plot(
        rejected, detected, color=ALL_FOLDS_COLOUR, lw=2, label=f"all folds, AUROC {expected['auroc']:.3f}"
    )
    axes.plot([0, 1], [0, 1], ":", color=ONE_FOLD_COLOUR)
    _mark_threshold(axes, expected["false_rejection"], 1 - expected["false_acceptance"])
    _format_unit_square(
        axes, "share of the normal images that is rejected", "share of the defects that is detected"
    )
    add_headline(axes, "ROC", _describe_folds(oof, "auroc"))


def draw_precision_recall(axes: Axes, oof: pd.DataFrame, expected: dict) -> None:
    for _, rows in oof.groupby("fold"):
        if rows["label"].any():
            precision, recall, _ = precision_recall_curve(rows["label"], rows["raw"])
            axes.step(recall, precision, color=ONE_FOLD_COLOUR, lw=0.8, where="post")
    precision, recall, _ = precision_recall_curve(oof["label"], oof["score"])
    text = f"all folds, average precision {expected['average_precision']:.3f}"
    axes.step(recall, precision, color=ALL_FOLDS_COLOUR, lw=2, where="post", label=text)
    axes.axhline(oof["label"].mean(), ls=":", color=ONE_FOLD_COLOUR)
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
    for part, colour, label in (
        ("train", TRAINING_COLOUR, "training"),
        ("val", VALIDATION_COLOUR, "validation"),
    ):
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
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _format_defect_scores(axes: Axes, scores: np.ndarray, expected: dict) -> None:
    """The axis of defect scores, and the threshold."""
    axes.axvline(
        AT_THRESHOLD,
        color=ALL_FOLDS_COLOUR,
        ls="--",
        lw=1.2,
        label=f"threshold, {describe_rule(expected['rule'], expected['fpr'], expected['costs'])}",
    )
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
