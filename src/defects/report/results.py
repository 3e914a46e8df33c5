"""What the run folders of an experiment tell: out-of-fold scores, figures of each fold, epochs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import Config, resolve
from defects.data.prepare import load_images
from defects.errors import UserError
from defects.files import read_json
from defects.scoring.blending import align_held
from defects.scoring.estimate import rank_metrics
from defects.scoring.pixels import Maps, masked_maps, pixel_metrics
from defects.training.run import OOF_MAPS, load_oof, run_folder

COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb", "parameters", "device"]


def out_of_fold(config: Config) -> pd.DataFrame:
    """images.csv's rows of all finished folds with fold, group, probability and two scores.

    `raw` is the score of the model that did not learn from the image, `score` its log-odds on the scale
    common to all folds. Raises UserError if nothing is trained, or on other data.
    """
    images = load_images(config).drop(columns="label")
    oof = load_oof(config).rename(columns={"score": "raw"}).merge(images, on="image_id")
    return oof.assign(score=align_held(oof)[0])


def class_rows(config: Config) -> pd.DataFrame:
    """Rows of oof.csv for data.classes, joined with images.csv; none if the detector does not know them."""
    images = load_images(config).drop(columns="label")
    return load_oof(config, tuple(config.data.classes)).merge(images, on="image_id")


def fold_figures(config: Config, fold: str, rows: pd.DataFrame, maps: Maps) -> dict[str, float | None]:
    """Figures of one model on `rows` (label, raw, and those of images.csv), and what it cost."""
    labels = rows["label"].to_numpy(dtype=int)
    costs = read_json(run_folder(config, fold) / "costs.json") or {}
    return {
        "images": len(rows),
        "defects": int(labels.sum()),
        **rank_metrics(labels, rows["raw"].to_numpy()),
        **pixel_metrics(masked_maps(rows, maps, resolve(config.data.root))),
        **{name: costs.get(name) for name in COSTS},
    }


def all_fold_figures(config: Config, oof: pd.DataFrame) -> pd.DataFrame:
    """fold_figures of every fold of `oof`, a row each, indexed by fold."""
    found = {
        fold: fold_figures(config, fold, rows, Maps(run_folder(config, fold) / OOF_MAPS))
        for fold, rows in oof.groupby("fold")
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("fold")


def read_history(path: Path) -> pd.DataFrame:
    """metrics.jsonl as a table, a row per epoch; empty for a detector without epochs."""
    if not path.exists():
        return pd.DataFrame()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines]).replace([np.inf, -np.inf], np.nan)
    except ValueError as error:
        raise UserError(f"{path} is not readable ({error}): train again with --restart") from None
