"""The out-of-fold scores of several experiments side by side, and what is worth looking at in them."""

from dataclasses import dataclass

import pandas as pd
from scipy.special import expit

from defects.config import Config
from defects.data.fold_files import DataTables
from defects.evaluation.blend import Ensemble, OutOfFoldScores
from defects.evaluation.display_scales import compute_defect_scores
from defects.evaluation.mistakes import find_doubtful_labels, measure_disagreement, measure_margins
from defects.evaluation.pixels import Maps
from defects.evaluation.scales import join, join_images
from defects.reports.figures import MapLimits, fit_limits
from defects.reports.run_tables import out_of_fold
from defects.runs import OOF_MAPS, Run
from defects.submission.build import calibrate_blend

BLEND = ""  # in place of an experiment's name: no folder is called that


@dataclass(frozen=True)
class Member:
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
    """`images`: out-of-fold rows of images.csv with fold and group, indexed by image_id like the members."""

    images: pd.DataFrame
    blend: Member
    members: list[Member]

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
    oofs = {run.name: out_of_fold(run, tables).set_index("image_id") for run in runs}
    images, scores, margins = score_members(runs[0].config, oofs)
    blend = Member("blend", scores[BLEND], margins[BLEND], {}, {})
    members = [_load_member(run, images, scores[run.name], margins[run.name]) for run in runs]
    return EnsembleTables(images, blend, members)


def score_members(
    config: Config, tables: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of images.csv with label, fold and group; log-odds; their margins above the thresholds.

    `tables` are those of out_of_fold by experiment. All are indexed by image_id; the latter two have a column
    for BLEND and each experiment.
    """
    scores = join({name: table["score"] for name, table in tables.items()})
    joined = join_images({name: table.reset_index() for name, table in tables.items()})
    scores = scores.reindex(joined.index)
    labels = joined["label"].to_numpy(dtype=int)
    sample = OutOfFoldScores(labels, scores.to_numpy(), joined["fold"].to_numpy(), joined["group"].to_numpy())
    ensemble = Ensemble(list(tables), sample, config.ensemble, config.threshold)
    scores[BLEND] = calibrate_blend(ensemble.fit(ensemble.choose()), sample, sample.scores)[0]
    margins = measure_margins(joined, scores, config.threshold.rule, config.threshold.fpr)
    nested_margins = ensemble.measure_nested_margins()
    if nested_margins is not None:
        margins[BLEND] = nested_margins
    first = next(iter(tables.values()))
    images = first.drop(columns=["target", "raw", "probability", "score"]).loc[joined.index]
    return images, scores, margins


def _load_member(run: Run, images: pd.DataFrame, scores: pd.Series, margins: pd.Series) -> Member:
    maps = {fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in images["fold"].unique()}
    limits = fit_limits(images.reset_index(), maps, run.config.threshold.fpr)
    return Member(run.name.removeprefix(f"{run.config.data.name}_"), scores, margins, maps, limits)
