"""Test scores of an experiment: one row per image and fold, resumable fold by fold."""

import pandas as pd

from defects.config import Config
from defects.data.prepare import load_images
from defects.data.split import FULL
from defects.errors import UserError
from defects.files import read_csv, read_json, sha256, write_csv, write_json
from defects.training.run import finished, load_detector, run_folder, score_table, train_fold, trained_folds
from defects.training.trainer import make_accelerator

TEST_COLUMNS = ["image_id", "target", "fold", "score", "probability"]


def score_test(config: Config, use: str) -> pd.DataFrame:
    """Write and return test.csv (TEST_COLUMNS); `use` is folds, full or both.

    Trains fold 0 first, and says so, when nothing was trained. Raises UserError without test images.
    """
    images = load_images(config)
    test = images[images["split"] == "test"].reset_index(drop=True)
    if test.empty:
        raise UserError(
            f"{config.dataset_dir / 'images.csv'} lists no test images: there is nothing to score"
        )
    models = _models(config, use)
    print(f"scoring {len(test)} test images with {', '.join(_name(fold) for fold in models)}")
    table = pd.concat([_score_fold(config, test, fold) for fold in models], ignore_index=True)
    table = table.sort_values(["image_id", "fold"], ignore_index=True)[TEST_COLUMNS]
    write_csv(config.experiment_dir / "test.csv", table)
    return table


def load_test(config: Config) -> pd.DataFrame:
    return read_csv(config.experiment_dir / "test.csv", TEST_COLUMNS, "src/infer.py")


def _models(config: Config, use: str) -> list[str]:
    if use != "folds" and not finished(config, FULL):
        raise UserError(f"{run_folder(config, FULL)} is not trained: run src/train.py --fold {FULL} first")
    if use == FULL:
        return [FULL]
    if not trained_folds(config):
        print(f"{config.experiment_dir} holds no trained fold: training fold 0 first")
        train_fold(config, "0")
    return trained_folds(config) + ([FULL] if use == "both" else [])


def _name(fold: str) -> str:
    return "the full fit" if fold == FULL else f"fold {fold}"


def _score_fold(config: Config, test: pd.DataFrame, fold: str) -> pd.DataFrame:
    """Scores of one model; kept in its run folder with what they were made from."""
    folder = run_folder(config, fold)
    stamp = {
        "best.pt": sha256(folder / "best.pt"),
        "images.csv": sha256(config.dataset_dir / "images.csv"),
    }
    detector = load_detector(config, fold)
    if (folder / "test.csv").exists() and read_json(folder / "test.json") == stamp:
        return read_csv(folder / "test.csv", TEST_COLUMNS, "src/infer.py")
    table = score_table(detector, config, test, fold, make_accelerator(config.train))
    write_csv(folder / "test.csv", table)
    write_json(folder / "test.json", stamp)
    return table
