"""Each stage runs the stages above it that have not run yet, and says so. Scripts alone ask for this."""

from accelerate import Accelerator

import pandas as pd

from defects.config import Config
from defects.data.prepare import find_index_problem, load_images, prepare_locked
from defects.data.split import DataTables, find_folds_problem, load_tables, split_locked
from defects.files import locked
from defects.runs import FULL, Run
from defects.training.fold import train_fold
from defects.training.scoring import score_test


def ensure_images(config: Config) -> pd.DataFrame:
    """images.csv; the data are prepared first when it is missing or made with other settings."""
    with locked(config.dataset_dir, wait=True):  # two folds may start at once on a fresh clone
        problem = find_index_problem(config)
        if problem is not None:
            print(f"{config.dataset_dir / 'images.csv'} {problem}: preparing the data first")
            prepare_locked(config)
    return load_images(config)


def ensure_tables(config: Config) -> DataTables:
    """images.csv and folds.csv; prepared and split first when they are missing or out of date."""
    images = ensure_images(config)
    with locked(config.dataset_dir, wait=True):
        problem = find_folds_problem(config)
        if problem is not None:
            print(f"{config.dataset_dir / 'folds.csv'} {problem}: splitting first")
            split_locked(config, images)
    return load_tables(config, images)
