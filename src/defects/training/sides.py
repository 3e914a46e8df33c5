"""Who learns, who is watched and who is scored: the images of one fold, never sharing an object."""

from dataclasses import dataclass, replace

import pandas as pd

from defects.config import Config, TrainConfig
from defects.data.folds import inner_holdout
from defects.errors import UserError
from defects.models import Detector


@dataclass
class Sides:
    """Rows of images.csv: `fitted` in the rotations of the training list, `training_images` all that may be
    learnt from, once and upright, `inner` kept unseen within the training side, `held` the fold to be scored
    (none for the full fit)."""

    fitted: pd.DataFrame
    training_images: pd.DataFrame
    inner: pd.DataFrame
    held: pd.DataFrame

    @property
    def originals(self) -> pd.DataFrame:
        """The images learnt from, each once and as it is."""
        once = self.fitted.drop_duplicates("image_id", ignore_index=True)
        return once.drop(columns=["angle", "flip"])

    @property
    def inner_normal(self) -> pd.DataFrame:
        return self.inner[self.inner["label"] == 0].reset_index(drop=True)

    def watched(self, train: TrainConfig) -> pd.DataFrame:
        """What validation looks at: the inner part where it selects or stops, or else the fold itself."""
        selects = train.select == "inner" or train.patience
        return self.inner if selects or self.held.empty else self.held

    def learnt_by(self, detector: Detector, config: Config) -> "Sides":
        """With `fitted` as the detector asks for it: normal images alone, upright ones alone.

        A detector that learns upright is given every training image once: the training list copies, rotates
        and leaves out images to balance two classes, of which it learns one. Raises UserError where the
        images that the detector needs are missing.
        """
        labels = self.fitted["label"]
        needed = {0: "normal"} if detector.learns_from == "normal" else {0: "normal", 1: "defect"}
        if len(detector.targets) > 1:
            del needed[0]  # classes differ from each other too
        missing = [name for label, name in needed.items() if not (labels == label).any()]
        name = config.model.name
        if missing:
            other = ": add some, or choose a detector of normal images, such as --detector patchcore_reduced"
            raise UserError(
                f"{config.data.name}: no {missing[0]} images to learn from; {name} needs them"
                f"{other if missing[0] == 'defect' else ''}"
            )
        if detector.needs_holdout and self.inner_normal.empty:
            raise UserError(self._no_calibration(config))
        selects = config.train.select == "inner" or config.train.patience
        if selects and self.inner.empty:
            raise UserError(
                f"train.inner_holdout={config.train.inner_holdout:g} keeps none of {len(self.originals)} "
                "images unseen to choose the epoch by, since one group of a class must be left to learn: "
                "add images, or set train.select=last and train.patience=null"
            )
        if detector.needs_holdout and config.infer.tta:
            raise UserError(
                f"{name} is calibrated on images as they are, which averages over turns would not fit: set "
                "infer.tta=false"
            )
        fitted = self.fitted
        if detector.learns_upright:
            fitted = self.training_images.assign(angle=0.0, flip="none")
        if detector.learns_from == "normal":
            fitted = fitted[fitted["label"] == 0]
        return replace(self, fitted=fitted[fitted["label"].notna()].reset_index(drop=True))

    def _no_calibration(self, config: Config) -> str:
        """Why no normal image is kept unseen to calibrate a detector on, and what to do."""
        normal = self.originals[self.originals["label"] == 0]
        groups = normal["group"].nunique()
        fraction = config.train.inner_holdout
        problem = (
            f"{config.model.name} is calibrated on held-out normal images, and train.inner_holdout="
            f"{fraction:g} keeps none of {len(normal)} (in {groups} group{'s' * (groups != 1)})"
        )
        if fraction == 0:
            return f"{problem}: set it, such as to 0.1"
        advice = "add normal images of other objects"
        if groups + self.held.loc[self.held["label"] == 0, "group"].nunique() > config.split.folds:
            advice += f", or raise split.folds={config.split.folds}, so that a fold holds out fewer"
        return f"{problem}, since one group must be left to learn from: {advice}"


def make_sides(config: Config, fold: str, table: pd.DataFrame, rows: pd.DataFrame) -> Sides:
    """Divide the images of folds.csv by the training list `rows` of one fold.

    Raises UserError if a group would be on two sides.
    """
    side, held = table[table["fold"] != fold], table[table["fold"] == fold]
    inner = side[inner_holdout(side, config.train.inner_holdout, config.split.seed)]
    fitted = rows.merge(table, on="image_id", how="left", validate="many_to_one")
    fitted = fitted[~fitted["image_id"].isin(inner["image_id"])].reset_index(drop=True)
    training_images = side[~side["image_id"].isin(inner["image_id"])].reset_index(drop=True)
    learnt = pd.concat([fitted, training_images])
    unseen = pd.concat([inner, held])["group"]
    shared = learnt.loc[learnt["group"].isin(unseen) | learnt["group"].isna(), "image_id"].unique()
    if len(shared):
        raise UserError(
            f"{config.dataset_dir}: the training list of fold {fold} shares a group with held-out images "
            f"({len(shared)} images, {shared[0]} first): run src/split.py again"
        )
    return Sides(fitted, training_images, inner, held)
