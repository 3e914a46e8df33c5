"""What the folders of a run tell: out-of-fold rows, maps, costs and epochs of each fold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from defects.config import Config, resolve
from defects.data.fold_files import DataTables
from defects.evaluation.metrics import rank_metrics
from defects.evaluation.pixels import Maps, masked_maps, pixel_metrics
from defects.evaluation.scales import align_oof
from defects.runs import OOF_MAPS, Run

COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb", "parameters", "device"]


@dataclass(frozen=True)
class RunTables:
    """What the report of a run is drawn from; `maps`, `costs` and `histories` are by fold.

    `oof` as out_of_fold gives it; `class_oof` as class_rows does; `samples` is a PNG of what training made of
    some images, if it made anything.
    """

    config: Config
    oof: pd.DataFrame
    class_oof: pd.DataFrame
    maps: dict[str, Maps]
    costs: dict[str, dict[str, Any]]
    histories: dict[str, pd.DataFrame]
    samples: bytes | None


def load_run_tables(run: Run, tables: DataTables) -> RunTables:
    """Raises UserError if no fold is trained, or on other data than the present."""
    oof = out_of_fold(run, tables)
    folds = sorted(oof["fold"].unique())
    samples = run.fold_folder(folds[0]) / "samples.png"
    return RunTables(
        config=run.config,
        oof=oof,
        class_oof=class_rows(run, tables),
        maps={fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in folds},
        costs={fold: run.read_costs(fold) for fold in folds},
        histories={fold: run.read_history(fold) for fold in folds},
        samples=samples.read_bytes() if samples.exists() else None,
    )


def out_of_fold(run: Run, tables: DataTables) -> pd.DataFrame:
    """images.csv's rows of all finished folds with fold, group, probability and two scores.

    `raw` is the score of the model that did not learn from the image, `score` its log-odds on the scale
    common to all folds. Raises UserError if nothing is trained, or on other data.
    """
    images = tables.images.drop(columns="label")
    oof = run.load_oof(tables.folds).rename(columns={"score": "raw"}).merge(images, on="image_id")
    return oof.assign(score=align_oof(oof)[0])


def class_rows(run: Run, tables: DataTables) -> pd.DataFrame:
    """Rows of oof.csv for data.classes, joined with images.csv; none if the detector does not know them."""
    images = tables.images.drop(columns="label")
    oof = run.load_oof(tables.folds, tuple(run.config.data.classes))
    return oof.merge(images, on="image_id")


def measure_fold(
    rows: pd.DataFrame, maps: Maps, costs: dict[str, Any], root: Path
) -> dict[str, float | str | None]:
    """Figures of one model on `rows` (label, raw, and those of images.csv), and what it cost.

    `root` is the folder of the data set.
    """
    labels = rows["label"].to_numpy(dtype=int)
    return {
        "images": len(rows),
        "defects": int(labels.sum()),
        **rank_metrics(labels, rows["raw"].to_numpy()),
        **pixel_metrics(masked_maps(rows, maps, root)),
        **{name: costs.get(name) for name in COSTS},
    }


def measure_folds(tables: RunTables) -> pd.DataFrame:
    """measure_fold of every fold out of fold, a row each, indexed by fold."""
    root = resolve(tables.config.data.root)
    figures = {
        fold: measure_fold(rows, tables.maps[fold], tables.costs[fold], root)
        for fold, rows in tables.oof.groupby("fold")
    }
    return pd.DataFrame.from_dict(figures, orient="index").rename_axis("fold")
