"""Who learns, who is watched and who is scored: the images of one fold, never sharing an object."""

from dataclasses import dataclass

import pandas as pd

from defects.config import Config
from defects.data.folds import inner_holdout
from defects.errors import UserError


@dataclass
class Sides:
    """Rows of images.csv: `fitted` in the rotations of the training list, `inner` kept unseen within the
    training side, `held` the fold to be scored (none for the full fit)."""

    fitted: pd.DataFrame
    inner: pd.DataFrame
    held: pd.DataFrame

    @property
    def originals(self) -> pd.DataFrame:
        """The images learnt from, each once and as it is."""
        once = self.fitted.drop_duplicates("image_id", ignore_index=True)
        return once.drop(columns=["angle", "flip"])

    @property
    def watched(self) -> pd.DataFrame:
        """What validation looks at each epoch: the inner part where there is one."""
        return self.held if self.inner.empty else self.inner


def make_sides(config: Config, fold: str, table: pd.DataFrame, rows: pd.DataFrame) -> Sides:
    """Divide the images of folds.csv by the training list `rows` of one fold.

    Raises UserError if a group would be on two sides, or if a classifier would see one class only.
    """
    side, held = table[table["fold"] != fold], table[table["fold"] == fold]
    inner = side[inner_holdout(side, config.train.inner_holdout, config.split.seed)]
    fitted = rows.merge(table, on="image_id", how="left", validate="many_to_one")
    fitted = fitted[~fitted["image_id"].isin(inner["image_id"])].reset_index(drop=True)
    unseen = pd.concat([inner, held])["group"]
    shared = fitted.loc[fitted["group"].isin(unseen) | fitted["group"].isna(), "image_id"].unique()
    if len(shared):
        raise UserError(
            f"{config.dataset_dir}: the training list of fold {fold} shares a group with held-out images "
            f"({len(shared)} images, {shared[0]} first): run src/split.py again"
        )
    _check_classes(config, fitted)
    return Sides(fitted, inner, held)


def _check_classes(config: Config, fitted: pd.DataFrame) -> None:
    present = set(fitted["label"].dropna())
    missing = [name for label, name in ((0, "normal"), (1, "defect")) if label not in present]
    if missing and config.model.name == "classifier":
        raise UserError(f"{config.data.name}: no {missing[0]} images to learn from; a classifier needs both")
