"""Run folders as training leaves them, written in a moment: known scores, maps that show the masks."""

import json

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.config_schema import Config, as_yaml, resolve
from defects.data.images import resize
from defects.data.labels import read_mask_files
from defects.files import array_archive, write_bytes, write_csv, write_json
from defects.runs import OOF_COLUMNS, TEST_COLUMNS, Run
from defects.stages import ensure_images, ensure_tables

COSTS = {"score_images_per_second": 12.5, "peak_memory_mb": 900, "model_mb": 8.5, "device": "CPU, 2 threads"}


def runs_of(config: Config, *names: str) -> list[Run]:
    """Runs of these names beside each other, as their folders tell of them."""
    return [Run.open(config.output_dir / name) for name in names]


def write_runs(
    config: Config, folds: str = "01", maps: bool = True, epochs: int = 3, seed: int = 0, scale: float = 1.0
) -> pd.DataFrame:
    """Fill the run folders of `folds`; returns the out-of-fold rows.

    Defects score 2 higher than normal images on the average. The maps of fold k are noise between 0 and 1
    and 5 more in the masks, times `scale` (k + 1).
    """
    rng, table = np.random.default_rng(seed), ensure_tables(config).folds
    table = table.assign(
        target="defect", score=rng.normal(size=len(table)) + 2.0 * table["label"].astype(float)
    )
    table = table.assign(probability=expit(table["score"]))[table["fold"].isin(list(folds))]
    for fold, rows in table.groupby("fold"):
        folder = Run(config).fold_folder(fold)
        write_bytes(folder / "best.pt", b"weights")
        write_bytes(folder / "config.yaml", as_yaml(config).encode())
        write_csv(folder / "oof.csv", rows[OOF_COLUMNS])
        write_json(folder / "costs.json", COSTS | {"fit_seconds": 10.0 + int(fold)})
        lines = [json.dumps(_epoch(epoch, epochs)) + "\n" for epoch in range(1, epochs + 1)]
        write_bytes(folder / "metrics.jsonl", "".join(lines).encode())
        if maps:
            _write_maps(config, folder / "oof_maps.npz", rows, scale * (int(fold) + 1), rng)
    return table


def write_member(config: Config, name: str, folds: str = "01", seed: int = 0, **train) -> Config:
    """An experiment whose folds are trained and whose test images are scored, every third of them defective.

    Defects score 2 higher than normal images on the average. Returns its config.
    """
    train = config.train.model_copy(update=train)
    run = config.model_copy(update={"experiment": name, "train": train})
    write_runs(run, folds, maps=False, seed=seed)
    rng = np.random.default_rng(seed + 100)
    ids = ensure_images(config).query("split == 'test'")["image_id"]
    defective = ids.str.extract(r"(\d+)")[0].astype(int).to_numpy() % 3 == 0
    tables = []
    for fold in folds:
        scores = rng.normal(size=len(ids)) + 2 * defective
        table = pd.DataFrame({"image_id": ids.to_numpy(), "target": "defect", "fold": fold, "score": scores})
        tables.append(table.assign(probability=expit(scores))[TEST_COLUMNS])
        folder = Run(run).fold_folder(fold)
        write_csv(folder / "test.csv", tables[-1])
        write_json(folder / "test.json", Run(run).score_stamp(fold))
    write_csv(run.experiment_dir / "test.csv", pd.concat(tables))
    return run


def _epoch(epoch: int, epochs: int) -> dict:
    """Losses in every epoch; unseen images are looked at in the last one only."""
    row = {"epoch": epoch, "lr": 1e-3, "train_loss": 1 / epoch, "train_student": 0.5 / epoch}
    return row | ({"val_auroc": 0.9, "val_macro_f1_best": 0.8} if epoch == epochs else {})


def _write_maps(config: Config, path, rows: pd.DataFrame, scale: float, rng) -> None:
    with array_archive(path) as add:
        for row in rows.itertuples():
            values = rng.random((16, 16))
            if row.mask_path:
                mask = read_mask_files(row.mask_path, resolve(config.data.root))
                values = values + 5 * resize(mask.astype(np.float32), (16, 16))
            add(row.image_id, (scale * values).astype(np.float16))
