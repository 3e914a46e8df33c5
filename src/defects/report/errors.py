"""What an ensemble gets wrong out of fold, in pictures: mistakes, disagreement, kinds, doubtful labels.

Answers of test images are not read: everything is about training images, each scored by models that did
not learn from it.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from defects.config import Config
from defects.files import write_csv
from defects.report import page
from defects.report.drawing import png, shorten
from defects.report.ensemble import HeldOut, load_ensemble
from defects.report.member_rows import Member, draw_rows
from defects.scoring.estimate import estimate
from defects.scoring.mistakes import found_by_kind
from defects.writing import write_bytes

SHOWN = 10  # images of a section; errors.csv has them all
PANELS = 5  # confusion matrices in a row
CLASSES = ["normal", "defective"]
PICTURES = (
    "Above an image: its kind where known, its name, the blend's probability of a defect, the fold. Then "
    "each member's probability, with its heat map where it has maps. Red is decided wrongly. Masks are "
    "outlined in yellow, and in cyan what exceeds the highest hundredth of the normal pixels."
)
DISAGREEMENT = (
    "Images that some members call defective and others normal, each by its own threshold. Those whose "
    "probabilities lie farthest apart come first."
)
SUSPECTED = (
    "Every member is confident of the other class: its probability reaches the mean one of the images "
    "labelled so (confident learning, Northcutt et al. 2021). A reason to look and no verdict: a defect "
    "that all members overlook is listed here too."
)
ONE_CLASS = "This needs defects and normal images among those out of fold; there is only one of the two."


def write_errors(config: Config, experiments: list[str]) -> list[Path]:
    """Write errors.html and errors.csv into output/<data.name>/errors; returns their paths.

    Raises UserError for experiments that are not trained, or not on the same images.
    """
    ensemble = load_ensemble(config, experiments)
    html, folder = build_page(config, ensemble), config.dataset_dir / "errors"
    write_csv(folder / "errors.csv", ensemble.table())
    write_bytes(folder / "errors.html", html.encode())
    return [folder / "errors.html", folder / "errors.csv"]


def build_page(config: Config, ensemble: HeldOut) -> str:
    images, members = ensemble.images, ensemble.members
    shown = members if len(members) == 1 else [ensemble.blend, *members]  # one member is its own blend
    subtitle = (
        f"{', '.join(member.name for member in members)}: {len(images):,} out-of-fold images, "
        f"{int(images['label'].sum()):,} defective; folds {', '.join(sorted(images['fold'].unique()))}"
    )
    parts = [
        _decisions(config, images, shown),
        *(_mistakes(config, ensemble, label) for label in (1, 0)),
        _disagreement(config, ensemble),
        _kinds(images, shown),
        _suspected(config, ensemble),
    ]
    return page.page(f"Errors on {config.data.name}", subtitle, parts)


def _decisions(config: Config, images: pd.DataFrame, shown: list[Member]) -> str:
    """Confusion matrices, and a table of figures, of the blend and the members."""
    single = images["fold"].nunique() == 1
    text = (
        "There is one trained fold: its thresholds were chosen on the same images, which flatters."
        if single
        else "The images of each fold are decided by the threshold of the other folds, for the training "
        "share of defects."
    )
    figures = pd.DataFrame([_figures(config, images, member) for member in shown])
    table = page.table(figures.set_index(pd.Index([member.name for member in shown])))
    matrices = png(partial(draw_matrices, images["label"].to_numpy(dtype=int), shown))
    return page.section("Decisions", text, page.picture(matrices, "confusion matrices"), table)


def _figures(config: Config, images: pd.DataFrame, member: Member) -> dict[str, str]:
    rows, labels = images.assign(score=member.scores), images["label"] == 1
    nested = member.called.to_numpy(dtype=int) if images["fold"].nunique() > 1 else None
    found = estimate(rows, config.threshold.rule, config.threshold.fpr, nested)
    missed, alarms = int((labels & ~member.called).sum()), int((~labels & member.called).sum())
    return {
        "missed defects": f"{missed:,} of {int(labels.sum()):,}",
        "false alarms": f"{alarms:,} of {int((~labels).sum()):,}",
        "macro-F1, nested": page.shown(found["nested_macro_f1"]),
        "AUROC": page.shown(found["auroc"]),
        "average precision": page.shown(found["average_precision"]),
    }


def draw_matrices(labels: np.ndarray, shown: list[Member]) -> Figure:
    """A panel for each member: counts, coloured by their share of the class."""
    rows = -(-len(shown) // PANELS)
    figure = Figure(figsize=(13, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, PANELS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, member in zip(panels, shown, strict=False):
        _draw_matrix(axes, confusion_matrix(labels, member.called, labels=[0, 1]))
        axes.set_title(shorten(member.name), weight="bold")
    return figure


def _draw_matrix(axes: Axes, counts: np.ndarray) -> None:
    """`counts` [label, called]."""
    axes.set_axis_on()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (label, called), count in np.ndenumerate(counts):
        share = shares[label, called]
        text = f"{count:,}\n{share:.1%}" if counts[label].any() else "–"
        axes.text(called, label, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks([0, 1], [f"called\n{name}" for name in CLASSES])
    axes.set_yticks([0, 1], CLASSES, rotation=90, va="center")


def _mistakes(config: Config, ensemble: HeldOut, label: int) -> str:
    title = "Missed defects" if label else "False alarms"
    if not (ensemble.images["label"] == label).any():
        return page.section(title, f"There are no {CLASSES[label]} images out of fold.")
    return _pictures(config, ensemble, title, f"The most wrong first. {PICTURES}", ensemble.mistakes(label))


def _disagreement(config: Config, ensemble: HeldOut) -> str:
    title = "Where members disagree"
    if len(ensemble.members) == 1:
        return page.section(title, "This needs two experiments: --experiments A B.")
    return _pictures(config, ensemble, title, DISAGREEMENT, ensemble.differing())


def _suspected(config: Config, ensemble: HeldOut) -> str:
    title = "Doubtful labels"
    if ensemble.images["label"].nunique() == 1:
        return page.section(title, ONE_CLASS)
    return _pictures(config, ensemble, title, SUSPECTED, ensemble.suspected())


def _kinds(images: pd.DataFrame, shown: list[Member]) -> str:
    """How many defects of each kind are found."""
    found = found_by_kind(images, pd.DataFrame({member.name: member.called for member in shown}))
    if found.empty:
        return page.section("Kinds of defects", "The data set does not tell kinds of defects apart.")
    count = found.pop("defects")
    texts = found.apply(lambda column: [f"{n} of {all}" for n, all in zip(column, count, strict=True)])
    return page.section("Kinds of defects", "Found, by kind.", page.table(texts))


def _pictures(config: Config, ensemble: HeldOut, title: str, text: str, ids: pd.Index) -> str:
    """A section with the first SHOWN of these images."""
    if ids.empty:
        return page.section(title, f"{text} There are none.")
    rows = ensemble.images.loc[ids[:SHOWN]].reset_index()
    sheet = draw_rows(config.data, rows, ensemble.blend, ensemble.members)
    title = f"{title} ({len(rows)} of {len(ids):,})"
    return page.section(title, text, page.picture(sheet.png(), title))
