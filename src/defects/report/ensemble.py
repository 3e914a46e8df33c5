"""The out-of-fold scores of several experiments side by side, and what is worth looking at in them."""

from dataclasses import dataclass

import pandas as pd
from scipy.special import expit

from defects.config import Config, resolve
from defects.files import read_json
from defects.report.gallery import map_scales
from defects.report.member_rows import Member
from defects.report.results import out_of_fold
from defects.scoring.blending import join, join_images
from defects.scoring.ensemble import Ensemble, Sample
from defects.scoring.mistakes import called_defective, disagreement, suspected_labels
from defects.scoring.pixels import Maps
from defects.submission.blend import blended
from defects.submission.build import members_of
from defects.training.run import OOF_MAPS, run_folder

BLEND = ""  # in place of an experiment's name: no folder is called that


@dataclass
class HeldOut:
    """`images`: out-of-fold rows of images.csv with fold and group, indexed by image_id like the members."""

    images: pd.DataFrame
    blend: Member
    members: list[Member]

    @property
    def scores(self) -> pd.DataFrame:
        return pd.DataFrame({member.name: member.scores for member in self.members})

    @property
    def called(self) -> pd.DataFrame:
        return pd.DataFrame({member.name: member.called for member in self.members})

    def mistakes(self, label: int) -> pd.Index:
        """Ids of the images of this label that the blend calls otherwise, the most wrong first."""
        wrong = (self.images["label"] == label) & (self.blend.called != (label == 1))
        return self.blend.scores[wrong].sort_values(ascending=label == 1, kind="stable").index

    def differing(self) -> pd.Index:
        """Ids of the images that members call differently, those with the widest gap first."""
        return disagreement(self.scores, self.called).index

    def suspected(self) -> pd.Index:
        """Ids of the images whose label every member doubts, those that the blend is surest about first."""
        labels = self.images["label"].to_numpy(dtype=int)
        doubted = suspected_labels(labels, self.scores.to_numpy())
        towards = self.blend.scores.where(labels == 0, -self.blend.scores)
        return towards[doubted].sort_values(ascending=False, kind="stable").index

    def table(self) -> pd.DataFrame:
        """errors.csv: every out-of-fold image, those that the blend is most wrong about first."""
        probability = expit(self.blend.scores)
        table = self.images[["label", "kind", "fold", "group"]].assign(
            called=self.blend.called.astype(int),
            suspected=self.images.index.isin(self.suspected()).astype(int),
            probability=probability,
        )
        order = (probability - table["label"].astype(float)).abs().sort_values(ascending=False, kind="stable")
        return table.join(expit(self.scores).add_prefix("probability_")).loc[order.index].reset_index()


def submitted_experiments(config: Config) -> list[str]:
    """Members of submissions/sample_submission.json; none where it is missing or about other data."""
    summary = read_json(resolve(config.submissions) / "sample_submission.json") or {}
    return list(summary["weights"]) if summary.get("data") == config.data.name else []


def load_ensemble(config: Config, experiments: list[str]) -> HeldOut:
    """Raises UserError for experiments that are not trained, or not on the same images."""
    images, scores, called = verdicts(config, experiments)
    blended = Member("blend", scores[BLEND], called[BLEND], {}, {})
    members = [_member(config, name, images, scores[name], called[name]) for name in experiments]
    return HeldOut(images, blended, members)


def verdicts(config: Config, experiments: list[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of images.csv with label, fold and group; log-odds, and whether they are called defective.

    All are indexed by image_id; the latter two have a column for BLEND and each experiment.
    """
    tables = {
        name: out_of_fold(run).set_index("image_id") for name, run in members_of(config, experiments).items()
    }
    scores = join({name: table["score"] for name, table in tables.items()})
    joined = join_images({name: table.reset_index() for name, table in tables.items()})
    scores = scores.reindex(joined.index)
    labels, folds, groups = (joined[name].to_numpy() for name in ("label", "fold", "group"))
    sample = Sample(labels.astype(int), scores.to_numpy(), folds, groups)
    ensemble = Ensemble(experiments, sample, config.ensemble, config.threshold)
    scores[BLEND] = blended(ensemble.fit(ensemble.choose()), sample, sample.scores)[0]
    called = called_defective(joined, scores, config.threshold.rule, config.threshold.fpr)
    nested = ensemble.predict_nested()
    if nested is not None:
        called[BLEND] = nested == 1
    rows = tables[experiments[0]].drop(columns=["target", "raw", "probability", "score"])
    return rows.loc[joined.index], scores, called


def _member(config: Config, name: str, images: pd.DataFrame, scores: pd.Series, called: pd.Series) -> Member:
    run = config.model_copy(update={"experiment": name})
    maps = {fold: Maps(run_folder(run, fold) / OOF_MAPS) for fold in images["fold"].unique()}
    scales = map_scales(images.reset_index(), maps)
    return Member(name.removeprefix(f"{config.data.name}_"), scores, called, maps, scales)
