"""What an ensemble gets wrong out of fold: mistakes, disagreement, kinds of defects, doubtful labels.

Answers of test images are not read: everything is about training images, each scored by models that did
not learn from it.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from defects.config import Config
from defects.config_data import DataConfig
from defects.evaluation.display_scales import format_defect_score
from defects.evaluation.estimate import estimate
from defects.evaluation.mistakes import count_detected_by_kind
from defects.reports.charts import draw_svg, shorten_name
from defects.reports.ensemble_tables import EnsembleTables, Member
from defects.reports.figures import Row, draw_heat_tile, draw_legend, mark_defects, read_tile
from defects.reports.html import (
    Block,
    Card,
    Cards,
    Charts,
    Fact,
    PageSection,
    Table,
    Text,
    build_page,
    embed_jpeg,
    format_number,
)
from defects.writing import write_bytes

SHOWN = 10  # images of a section; errors.csv has them all
MATRIX_INCHES = (2.5, 2.6)
CLASSES = ["normal", "defective"]
ONE_FOLD = "There is one trained fold: its thresholds were chosen on the same images, which is optimistic."
OTHER_FOLDS = (
    "The images of each fold are decided by the threshold of the other folds, for the training share of "
    "defects."
)
CARDS = (
    "The most wrong first. Below the name of an image: its kind where known, the blend's defect score, then "
    "the score of each member, on the heat map of those that have maps. 50 is the threshold; red is decided "
    "wrongly. Masks are outlined in yellow, what reaches the threshold of a map in cyan."
)
DISAGREEMENT = (
    "Images that count as defective by some members and as normal by others, each with its own threshold. "
    "Those whose probabilities lie farthest apart come first."
)
DOUBTFUL = (
    "Every member is confident of the other class: its probability reaches the mean one of the images "
    "labelled so (confident learning, Northcutt et al. 2021). A reason to look and no verdict: a defect "
    "that all members overlook is listed here too."
)
ONE_CLASS = "This needs defects and normal images among those out of fold; there is only one of the two."
NO_KINDS = "The data set does not tell kinds of defects apart."
ONE_MEMBER = "This needs two runs: src/errors.py A B."


def write_error_report(path: Path, config: Config, tables: EnsembleTables) -> None:
    """Write the page to `path`."""
    write_bytes(path, build_error_report(config, tables).encode())


def build_error_report(config: Config, tables: EnsembleTables) -> str:
    """The page as HTML."""
    images = tables.images
    members = tables.members
    rated = members if len(members) == 1 else [tables.blend, *members]  # one member is its own blend
    names = ", ".join(member.name for member in members)
    subtitle = (
        f"{names}: {len(images):,} out-of-fold images, {int(images['label'].sum()):,} defective; folds "
        f"{', '.join(sorted(images['fold'].unique()))}"
    )
    doubtful: list[Block] = [Text(ONE_CLASS)]
    if images["label"].nunique() > 1:
        doubtful = draw_cards(config.data, tables, DOUBTFUL, tables.list_doubtful_labels())
    disagreement: list[Block] = [Text(ONE_MEMBER)]
    if len(members) > 1:
        disagreement = draw_cards(config.data, tables, DISAGREEMENT, tables.list_disagreements())
    legend = [draw_legend()] if any(member.has_maps for member in members) else []
    sections = [
        PageSection("Decisions", draw_decisions(config, images, rated)),
        PageSection("Missed defects", [*legend, *draw_mistakes(config.data, tables, 1)]),
        PageSection("False alarms", draw_mistakes(config.data, tables, 0)),
        PageSection("Where members disagree", disagreement),
        PageSection("Kinds of defects", list_kinds(images, rated)),
        PageSection("Doubtful labels", doubtful),
    ]
    return build_page(f"Errors on {config.data.name}", subtitle, sections)


def draw_decisions(config: Config, images: pd.DataFrame, members: list[Member]) -> list[Block]:
    """Figures and confusion matrices of the members, the blend among them."""
    figures = {member.name: measure_member(config, images, member) for member in members}
    labels = images["label"].to_numpy(dtype=int)
    matrices = [draw_svg(partial(draw_matrix, labels, member)) for member in members]
    return [
        Text(ONE_FOLD if images["fold"].nunique() == 1 else OTHER_FOLDS),
        Table(pd.DataFrame.from_dict(figures, orient="index")),
        Charts(matrices, width=150),
    ]


def measure_member(config: Config, images: pd.DataFrame, member: Member) -> dict[str, str]:
    """A row of the table of figures, as texts."""
    labels = images["label"] == 1
    nested = member.predicted.to_numpy(dtype=int) if images["fold"].nunique() > 1 else None
    rows = images.assign(score=member.scores)
    expected = estimate(rows, config.threshold.rule, config.threshold.fpr, nested)
    missed = int((labels & ~member.predicted).sum())
    alarms = int((~labels & member.predicted).sum())
    return {
        "missed defects": f"{missed:,} of {int(labels.sum()):,}",
        "false alarms": f"{alarms:,} of {int((~labels).sum()):,}",
        "macro-F1 (nested CV)": format_number(expected["nested_macro_f1"]),
        "AUROC": format_number(expected["auroc"]),
        "average precision": format_number(expected["average_precision"]),
    }


def draw_matrix(labels: np.ndarray, member: Member) -> Figure:
    """Confusion matrix: counts, coloured by their share of the class."""
    counts = confusion_matrix(labels, member.predicted, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=MATRIX_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (label, predicted), count in np.ndenumerate(counts):
        share = shares[label, predicted]
        text = f"{count:,}\n{share:.1%}" if counts[label].any() else "–"
        axes.text(predicted, label, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks([0, 1], CLASSES)
    axes.set_yticks([0, 1], CLASSES, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="labelled")
    axes.spines[:].set_visible(False)
    axes.set_title(shorten_name(member.name), weight="bold")
    return figure


def draw_mistakes(data: DataConfig, tables: EnsembleTables, label: int) -> list[Block]:
    if not (tables.images["label"] == label).any():
        return [Text(f"There are no {CLASSES[label]} images out of fold.")]
    return draw_cards(data, tables, CARDS, tables.list_mistakes(label))


def list_kinds(images: pd.DataFrame, members: list[Member]) -> list[Block]:
    """How many defects of each kind are detected."""
    predicted = pd.DataFrame({member.name: member.predicted for member in members})
    counts = count_detected_by_kind(images, predicted)
    if counts.empty:
        return [Text(NO_KINDS)]
    totals = counts.pop("defects")
    texts = counts.apply(lambda column: [f"{n} of {total}" for n, total in zip(column, totals, strict=True)])
    return [Text("Defects detected, by kind."), Table(texts)]


def draw_cards(data: DataConfig, tables: EnsembleTables, text: str, image_ids: pd.Index) -> list[Block]:
    """The first SHOWN of these images, with how many there are."""
    if image_ids.empty:
        return [Text(text), Text("There are none.")]
    shown = tables.images.loc[image_ids[:SHOWN]].reset_index().to_dict("records")
    cards = [draw_member_card(data, tables, row) for row in shown]
    return [Text(text), Cards(f"{len(shown)} of {len(image_ids):,} images", cards)]


def draw_member_card(data: DataConfig, tables: EnsembleTables, row: Row) -> Card:
    """The image, then the heat maps; a member without a map of this image is a line of text."""
    image_id = row["image_id"]
    name = Path(image_id).name
    is_defective = row["label"] == 1

    def is_wrong(member: Member) -> bool:
        return bool(member.predicted[image_id] != is_defective)

    def describe(member: Member) -> str:
        return f"{member.name} {format_defect_score(member.defect_scores[image_id])}"

    tile = read_tile(data, row)
    pictures = [embed_jpeg(mark_defects(tile, data, row), name, CLASSES[row["label"]])]
    facts = [Fact(row["kind"])] if row["kind"] else []
    if len(tables.members) > 1:
        facts.append(Fact(f"{describe(tables.blend)}, fold {row['fold']}", is_wrong(tables.blend)))
    else:
        facts.append(Fact(f"fold {row['fold']}"))
    for member in tables.members:
        maps = member.maps[row["fold"]]
        if image_id in maps:
            heat = draw_heat_tile(tile, maps[image_id], member.limits[row["fold"]])
            alt = f"heat map of {name} by {member.name}"
            pictures.append(embed_jpeg(heat, alt, describe(member), is_wrong(member)))
        else:
            facts.append(Fact(describe(member), is_wrong(member)))
    return Card(name, tuple(pictures), tuple(facts), image_id)
