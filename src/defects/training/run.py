"""One experiment x one fold: the run folder, what goes into it, and when it counts as finished."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout

from defects.config import Config, as_yaml
from defects.data.datasets import plain_loader, training_loader
from defects.data.folds import inner_holdout
from defects.data.split import FULL, load_folds, load_training_rows
from defects.errors import UserError
from defects.files import read_csv, write_bytes, write_csv
from defects.models import Detector, build_detector
from defects.training import checkpoint
from defects.training.scorer import score_batches, tta_members
from defects.training.tracking import Tracker
from defects.training.trainer import Trainer, make_accelerator

OOF_COLUMNS = ["image_id", "target", "fold", "label", "score", "probability"]


def run_folder(config: Config, fold: str) -> Path:
    return config.experiment_dir / ("full" if fold == FULL else f"fold{fold}")


def finished(config: Config, fold: str) -> bool:
    return (run_folder(config, fold) / "best.pt").exists()


def train_fold(config: Config, fold: str, restart: bool = False) -> None:
    """Train one fold (or `full`) and score its held-out images; resumes, and skips what is finished.

    Writes config.yaml, metrics.jsonl, last.pt, oof.csv and, last of all, best.pt.
    """
    table, rows = load_folds(config), load_training_rows(config, fold)
    planned, epochs = _plan(config, fold)
    sides = make_sides(planned, fold, table, rows)
    folder = run_folder(config, fold)
    with _locked(folder):
        if restart:
            _clear(folder)
        fingerprint = checkpoint.fingerprint(planned, fold, epochs)
        if (folder / "best.pt").exists():
            checkpoint.check_fingerprint(
                folder / "best.pt", load_best(config, fold)["fingerprint"], fingerprint
            )
            print(f"{folder} is finished; --restart trains it again")
            return
        _train(planned, fold, epochs, sides, fingerprint, folder)
    print(f"wrote {folder}")


def trained_folds(config: Config) -> list[str]:
    """Finished folds in order, without `full`."""
    return [fold for fold in map(str, range(config.split.folds)) if finished(config, fold)]


def load_best(config: Config, fold: str) -> dict[str, Any]:
    """best.pt of a fold: detector (state), fingerprint, epoch (whose weights these are)."""
    return checkpoint.load(run_folder(config, fold) / "best.pt")


def load_detector(config: Config, fold: str) -> Detector:
    """The trained detector of a fold. Raises UserError if its checkpoint belongs to another config."""
    detector = build_detector(config, pretrained=False)
    path = run_folder(config, fold) / "best.pt"
    content = load_best(config, fold)
    # With fold "full" the number of epochs was chosen by the folds: it is the checkpoint's to tell.
    current = checkpoint.fingerprint(_plan(config, fold)[0], fold, content["fingerprint"]["epochs"])
    checkpoint.check_fingerprint(path, content["fingerprint"], current)
    detector.load_state_dict(content["detector"])
    return detector


def load_oof(config: Config) -> pd.DataFrame:
    """Out-of-fold rows of all finished folds, with the group of each image. UserError if there are none."""
    files = sorted(config.experiment_dir.glob("fold*/oof.csv"))
    if not files:
        raise UserError(f"{config.experiment_dir} holds no oof.csv: run src/train.py first")
    oof = pd.concat([read_csv(path, OOF_COLUMNS, "src/train.py") for path in files], ignore_index=True)
    groups = load_folds(config)[["image_id", "group"]]
    return oof.merge(groups, on="image_id", validate="many_to_one")


def score_table(
    detector: Detector, config: Config, rows: pd.DataFrame, fold: str, accelerator: Accelerator
) -> pd.DataFrame:
    """image_id, target, fold, score, probability for each of `rows`, TTA averaged."""
    loader = accelerator.prepare(plain_loader(config, rows))
    members = tta_members(config.data.symmetries, config.infer.tta)
    scores = np.full(len(rows), np.nan)
    for index, score in score_batches(detector.to(accelerator.device), loader, members, accelerator):
        scores[index.numpy()] = score[:, 0].numpy()
    with torch.inference_mode():
        probability = detector.cpu().probability(torch.from_numpy(scores))
    return pd.DataFrame(
        {"image_id": rows["image_id"].to_numpy(), "target": "defect", "fold": fold, "score": scores}
    ).assign(probability=probability.numpy())


def _train(
    config: Config, fold: str, epochs: int, sides: "Sides", fingerprint: dict[str, Any], folder: Path
) -> None:
    accelerator = make_accelerator(config.train)
    set_seed(config.train.seed)
    detector = build_detector(config)
    write_bytes(folder / "config.yaml", as_yaml(config).encode())
    tracker = Tracker(config, fold, folder)
    trainer = Trainer(detector, config.train, epochs, folder, fingerprint, accelerator, tracker)
    loader = training_loader(config, sides.fitted)
    detector.prepare(loader)
    trainer.fit(loader, plain_loader(config, sides.watched) if len(sides.watched) else None)
    if len(sides.inner):
        detector.calibrate(plain_loader(config, sides.inner))
    if len(sides.held):
        oof = score_table(detector, config, sides.held, fold, accelerator)
        oof = oof.merge(sides.held[["image_id", "label"]], on="image_id", validate="one_to_one")
        write_csv(folder / "oof.csv", oof[OOF_COLUMNS])
    best = {"fingerprint": fingerprint, "epoch": trainer.chosen_epoch()}
    checkpoint.save(folder / "best.pt", best | {"detector": detector.cpu().state_dict()})
    tracker.close()


@dataclass
class Sides:
    """Rows of images.csv: `fitted` in the rotations of the training list, `inner` kept unseen within the
    training side, `held` the fold to be scored."""

    fitted: pd.DataFrame
    inner: pd.DataFrame
    held: pd.DataFrame

    @property
    def watched(self) -> pd.DataFrame:
        """What validation looks at each epoch: the inner part where there is one."""
        return self.held if self.inner.empty else self.inner


def make_sides(config: Config, fold: str, table: pd.DataFrame, rows: pd.DataFrame) -> Sides:
    """Divide the images for one fold. Raises UserError if a group would be on two sides."""
    side, held = table[table["fold"] != fold], table[table["fold"] == fold]
    is_inner = inner_holdout(side, config.train.inner_holdout, config.split.seed)
    inner = side[is_inner]
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
        raise UserError(
            f"no {missing[0]} images among {config.data.name}'s training images: a classifier needs both"
        )


def _plan(config: Config, fold: str) -> tuple[Config, int]:
    """The full fit has nothing to select on: it takes the number of epochs that the folds chose."""
    if fold != FULL or config.train.select == "last":
        return _without_inner(config) if fold == FULL else config, config.train.epochs
    chosen = [load_best(config, name)["epoch"] for name in trained_folds(config)]
    if not chosen:
        raise UserError(
            f"--fold {FULL} with train.select=inner takes its epochs from the folds: train them first"
        )
    return _without_inner(config), round(float(np.median(chosen)))


def _without_inner(config: Config) -> Config:
    changes = {"select": "last", "patience": None, "inner_holdout": 0.0}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run folder; the system releases the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{folder} is being written by another process: wait for it, or stop it") from None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
