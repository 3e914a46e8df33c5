"""Runs that differ in their seeds alone, and their out-of-fold scores."""

import json

import pandas as pd

from defects.config import Config
from defects.data.fold_files import DataTables
from defects.data.labels import DEFECT
from defects.evaluation.align import align_held
from defects.messages import UserError
from defects.runs import Run
from defects.stamps import settings_but

# Names and places, seeds, and what changes no result.
NOT_THE_MODEL = {
    "experiment",
    "output",
    "submissions",
    "data.root",
    "data.answers",
    "split.seed",
    "train.seed",
    "train.workers",
    "train.save_every",
    "infer.batch_size",
    "infer.shard",
    "ensemble",
    "tracking",
}


def without_seeds(config: Config) -> str:
    """Equal for configurations that differ in their seeds, names and folders alone."""
    return json.dumps(settings_but(config, NOT_THE_MODEL), sort_keys=True)


def aligned_oof(run: Run, tables: DataTables) -> pd.DataFrame:
    """Out-of-fold rows joined with images.csv and groups, whatever seed their folds were drawn with.

    `raw` is the score of the model that did not learn from the image, `score` its log-odds on the scale
    common to all folds. Raises UserError when images or labels are not those of the present images.csv.
    """
    rows = run.read_oof()
    oof = rows[rows["target"] == DEFECT].reset_index(drop=True)
    images = tables.images.rename(columns={"label": "known"})
    joined = oof.merge(tables.folds[["image_id", "group"]], on="image_id", how="left")
    joined = joined.merge(images, on="image_id", how="left").rename(columns={"score": "raw"})
    wrong = (joined["label"] != joined["known"]).fillna(True) | joined["image_id"].duplicated()
    if wrong.any():
        raise UserError(
            f"{run.folder}: its out-of-fold images are not those of {run.config.dataset_dir / 'images.csv'} "
            f"({wrong.sum()} differ, {joined.loc[wrong, 'image_id'].iloc[0]} first): use train.py --restart"
        )
    return joined.assign(score=align_held(oof)[0])
