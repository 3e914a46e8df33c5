"""What an ensemble gets wrong out of fold: mistakes, disagreement, kinds of defects, doubtful labels.

Answers of test images are not read: everything is about training images, each scored by models that did
not learn from it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit
from sklearn.metrics import confusion_matrix

from defects.config_schema import Config, DataConfig
from defects.data.fold_files import DataTables, read_grouping
from defects.data.roi import load_roi
from defects.evaluation.acceptance import state_claims
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.blend import Ensemble, OutOfFoldScores
from defects.evaluation.display_scales import compute_defect_scores, format_defect_score
from defects.evaluation.estimate import estimate
from defects.evaluation.mistakes import (
    count_detected_by_kind,
    find_doubtful_labels,
    measure_disagreement,
    measure_margins,
)
from defects.evaluation.pixels import Maps
from defects.evaluation.scales import join_images, join_scores
from defects.evaluation.threshold_uncertainty import measure_inflation
from defects.reports import html
from defects.reports.charts import draw_svg, shorten_name
from defects.reports.claims_section import ClaimTables, build_claims_section, load_claim_tables
from defects.reports.figures import (
    MapLimits,
    Row,
    draw_heat_tile,
    draw_legend,
    fit_limits,
    mark_defects,
    read_inside,
    read_tile,
)
from defects.reports.run_report import load_aligned_oof
from defects.runs import OOF_MAPS, Run
from defects.submission.build import calibrate_blend

BLEND = ""  # in place of an experiment's name: no folder has this name
SECTION_IMAGES = 12  # of a section, rows of two, three or six cards; errors.csv has all
MATRIX_INCHES = (2.5, 2.6)
CLASS_NAMES = ["normal", "defective"]
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
    "that all members miss is listed too."
)
ONE_CLASS = "This needs defects and normal images among those out of fold; there is only one of the two."
NO_KINDS = "The data set does not tell kinds of defects apart."
ONE_MEMBER = "This needs two runs: src/errors.py A B."


@dataclass(frozen=True)
class RatedMember:
    """An experiment, or the blend; series are by image_id.

    `scores` are log-odds of a defect. `margins` are log-odds above the thresholds of the other folds: at
    least 0 where the image counts as defective. `maps` and `limits` are by fold.
    """

    name: str
    scores: pd.Series
    margins: pd.Series
    maps: dict[str, Maps]
    limits: MapLimits

    @property
    def has_maps(self) -> bool:
        return any(len(maps) for maps in self.maps.values())

    @property
    def predicted(self) -> pd.Series:
        """bool: whether an image counts as defective."""
        return self.margins >= 0

    @property
    def defect_scores(self) -> pd.Series:
        return pd.Series(compute_defect_scores(self.margins, 0.0), self.margins.index)


@dataclass(frozen=True)
class EnsembleTables:
    """`images`: out-of-fold rows of images.csv with fold and group, indexed by image_id like the members.

    `claims` are about the blend, for the training share of defects.
    """

    images: pd.DataFrame
    blend: RatedMember
    members: list[RatedMember]
    claims: ClaimTables

    @property
    def scores(self) -> pd.DataFrame:
        return pd.DataFrame({member.name: member.scores for member in self.members})

    @property
    def predicted(self) -> pd.DataFrame:
        return pd.DataFrame({member.name: member.predicted for member in self.members})

    def list_mistakes(self, label: int) -> pd.Index:
        """Ids of the images of this label that the blend decides wrongly, the most wrong first."""
        is_wrong = (self.images["label"] == label) & (self.blend.predicted != (label == 1))
        return self.blend.margins[is_wrong].sort_values(ascending=label == 1, kind="stable").index

    def list_disagreements(self) -> pd.Index:
        """Ids of the images that members decide differently, those with the widest gap first."""
        return measure_disagreement(self.scores, self.predicted).index

    def list_doubtful_labels(self) -> pd.Index:
        """Ids of the images whose label every member doubts, those that the blend is surest about first."""
        labels = self.images["label"].to_numpy(dtype=int)
        is_doubtful = find_doubtful_labels(labels, self.scores.to_numpy())
        towards_other = self.blend.scores.where(labels == 0, -self.blend.scores)
        return towards_other[is_doubtful].sort_values(ascending=False, kind="stable").index

    def build_table(self) -> pd.DataFrame:
        """errors.csv: every out-of-fold image, those that the blend is most wrong about first."""
        probability = expit(self.blend.scores)
        table = self.images[["label", "kind", "fold", "group"]].assign(
            predicted=self.blend.predicted.astype(int),
            suspected=self.images.index.isin(self.list_doubtful_labels()).astype(int),
            defect_score=self.blend.defect_scores,
            probability=probability,
        )
        order = (probability - table["label"].astype(float)).abs().sort_values(ascending=False, kind="stable")
        return table.join(expit(self.scores).add_prefix("probability_")).loc[order.index].reset_index()


def load_ensemble_tables(runs: list[Run], tables: DataTables) -> EnsembleTables:
    """Raises UserError for runs that are not trained, or not on the same images.

    The settings of the blend and of the threshold are those of the first run.
    """
    oofs = {run.name: load_aligned_oof(run, tables).set_index("image_id") for run in runs}
    images, scores, margins = score_members(runs[0].config, oofs)
    blend = RatedMember("blend", scores[BLEND], margins[BLEND], {}, {})
    members = []
    for run in runs:
        maps = {fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in images["fold"].unique()}
        roi = load_roi(run.config.data)
        limits = fit_limits(images.reset_index(), maps, run.config.threshold.fpr, roi)
        name = run.name.removeprefix(f"{run.config.data.name}_")
        members.append(RatedMember(name, scores[run.name], margins[run.name], maps, limits))
    return EnsembleTables(images, blend, members, load_blend_claims(runs[0].config, images, blend))


def load_blend_claims(config: Config, images: pd.DataFrame, blend: RatedMember) -> ClaimTables:
    """What may be claimed of the blend; `images` as in EnsembleTables."""
    rows = images.reset_index()
    nested = blend.predicted.to_numpy(dtype=int) if images["fold"].nunique() > 1 else None
    scores = blend.scores.to_numpy()
    labels = rows["label"].to_numpy(dtype=int)
    inflation = measure_inflation(
        labels, scores, rows["fold"].to_numpy(), rows["group"].to_numpy(), config.threshold
    )
    grouping = read_grouping(config)
    comparison = stored_comparison(config)
    claims = state_claims(config.claims, rows, nested, grouping, comparison, inflation=inflation)
    return load_claim_tables(config, rows, scores, nested, claims)


def score_members(
    config: Config, tables: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of images.csv with label, fold and group; log-odds; their margins above the thresholds.

    `tables` are those of load_aligned_oof by experiment. All are indexed by image_id; the latter two have a
    column for BLEND and each experiment.
    """
    scores = join_scores({name: table["score"] for name, table in tables.items()})
    joined = join_images({name: table.reset_index() for name, table in tables.items()})
    scores = scores.reindex(joined.index)
    labels = joined["label"].to_numpy(dtype=int)
    sample = OutOfFoldScores(labels, scores.to_numpy(), joined["fold"].to_numpy(), joined["group"].to_numpy())
    ensemble = Ensemble(list(tables), sample, config.ensemble, config.threshold)
    scores[BLEND] = calibrate_blend(ensemble.fit(ensemble.choose()), sample, sample.scores)[0]
    margins = measure_margins(joined, scores, config.threshold)
    nested_margins = ensemble.measure_nested_margins()
    if nested_margins is not None:
        margins[BLEND] = nested_margins
    first = next(iter(tables.values()))
    images = first.drop(columns=["target", "raw", "probability", "score"]).loc[joined.index]
    return images, scores, margins


# --- the page ----------------------------------------------------------------------------------------------


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
    doubtful: list[html.Block] = [html.Text(ONE_CLASS)]
    if images["label"].nunique() > 1:
        doubtful = draw_cards(config.data, tables, DOUBTFUL, tables.list_doubtful_labels())
    disagreement: list[html.Block] = [html.Text(ONE_MEMBER)]
    if len(members) > 1:
        disagreement = draw_cards(config.data, tables, DISAGREEMENT, tables.list_disagreements())
    legend = [draw_legend()] if any(member.has_maps for member in members) else []
    sections = [
        html.PageSection("Decisions", draw_decisions(config, images, rated)),
        build_claims_section(config, tables.claims),
        html.PageSection("Missed defects", [*legend, *draw_mistakes(config.data, tables, 1)]),
        html.PageSection("False alarms", draw_mistakes(config.data, tables, 0)),
        html.PageSection("Where members disagree", disagreement),
        html.PageSection("Kinds of defects", list_kinds(images, rated)),
        html.PageSection("Doubtful labels", doubtful),
    ]
    return html.build_page(f"Errors on {config.data.name}", subtitle, sections)


def draw_decisions(config: Config, images: pd.DataFrame, members: list[RatedMember]) -> list[html.Block]:
    """Figures and confusion matrices of the members, the blend among them."""
    figures = {member.name: measure_member(config, images, member) for member in members}
    labels = images["label"].to_numpy(dtype=int)
    matrices = [draw_svg(partial(draw_matrix, labels, member)) for member in members]
    return [
        html.Text(ONE_FOLD if images["fold"].nunique() == 1 else OTHER_FOLDS),
        html.Table(pd.DataFrame.from_dict(figures, orient="index")),
        html.Charts(matrices, width=190),
    ]


def measure_member(config: Config, images: pd.DataFrame, member: RatedMember) -> dict[str, str]:
    """A row of the table of figures, as texts."""
    labels = images["label"] == 1
    nested = member.predicted.to_numpy(dtype=int) if images["fold"].nunique() > 1 else None
    rows = images.assign(score=member.scores)
    expected = estimate(rows, config.threshold, nested)
    missed = int((labels & ~member.predicted).sum())
    alarms = int((~labels & member.predicted).sum())
    return {
        "missed defects": f"{missed:,} of {int(labels.sum()):,}",
        "false alarms": f"{alarms:,} of {int((~labels).sum()):,}",
        "macro-F1 (nested CV)": html.format_number(expected["nested_macro_f1"]),
        "AUROC": html.format_number(expected["auroc"]),
        "average precision": html.format_number(expected["average_precision"]),
    }


def draw_matrix(labels: np.ndarray, member: RatedMember) -> Figure:
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
    axes.set_xticks([0, 1], CLASS_NAMES)
    axes.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="labelled")
    axes.spines[:].set_visible(False)
    axes.set_title(shorten_name(member.name), weight="bold")
    return figure


def draw_mistakes(data: DataConfig, tables: EnsembleTables, label: int) -> list[html.Block]:
    if not (tables.images["label"] == label).any():
        return [html.Text(f"There are no {CLASS_NAMES[label]} images out of fold.")]
    return draw_cards(data, tables, CARDS, tables.list_mistakes(label))


def list_kinds(images: pd.DataFrame, members: list[RatedMember]) -> list[html.Block]:
    """How many defects of each kind are detected."""
    predicted = pd.DataFrame({member.name: member.predicted for member in members})
    counts = count_detected_by_kind(images, predicted)
    if counts.empty:
        return [html.Text(NO_KINDS)]
    totals = counts.pop("defects")
    texts = counts.apply(lambda column: [f"{n} of {total}" for n, total in zip(column, totals, strict=True)])
    return [html.Text("Defects detected, by kind."), html.Table(texts)]


def draw_cards(data: DataConfig, tables: EnsembleTables, text: str, image_ids: pd.Index) -> list[html.Block]:
    """The first SECTION_IMAGES of these images, with how many there are."""
    if image_ids.empty:
        return [html.Text(text), html.Text("There are none.")]
    rows = tables.images.loc[image_ids[:SECTION_IMAGES]].reset_index().to_dict("records")
    cards = [draw_member_card(data, tables, row) for row in rows]
    return [html.Text(text), html.Cards(f"{len(rows)} of {len(image_ids):,} images", cards)]


def draw_member_card(data: DataConfig, tables: EnsembleTables, row: Row) -> html.Card:
    """The image, then the heat maps; a member without a map of this image is a line of text."""
    image_id = row["image_id"]
    name = Path(image_id).name
    is_defective = row["label"] == 1

    def is_wrong(member: RatedMember) -> bool:
        return bool(member.predicted[image_id] != is_defective)

    def describe(member: RatedMember) -> str:
        return f"{member.name} {format_defect_score(member.defect_scores[image_id])}"

    tile = read_tile(data, row)
    pictures = [html.embed_jpeg(mark_defects(tile, data, row), name, CLASS_NAMES[row["label"]])]
    facts = [html.Fact(row["kind"])] if row["kind"] else []
    if len(tables.members) > 1:
        facts.append(html.Fact(f"{describe(tables.blend)}, fold {row['fold']}", is_wrong(tables.blend)))
    else:
        facts.append(html.Fact(f"fold {row['fold']}"))
    for member in tables.members:
        maps = member.maps[row["fold"]]
        if image_id in maps:
            inside = read_inside(data, row, tile.shape[:2])
            heat = draw_heat_tile(tile, maps[image_id], member.limits[row["fold"]], inside)
            alt = f"heat map of {name} by {member.name}"
            pictures.append(html.embed_jpeg(heat, alt, describe(member), is_wrong(member)))
        else:
            facts.append(html.Fact(describe(member), is_wrong(member)))
    return html.Card(name, tuple(pictures), tuple(facts), image_id)
