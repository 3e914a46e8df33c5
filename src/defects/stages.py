"""Each stage runs the stages above it that have not run yet, and says so. Scripts alone ask for this."""

from argparse import Namespace

import pandas as pd

from defects import cli
from defects.config import load_config
from defects.config_schema import ROOT, Config
from defects.data.fold_files import DataTables, find_folds_problem, load_tables, split_locked
from defects.data.index import find_index_problem, load_images, prepare_locked
from defects.files import locked
from defects.runs import FULL, Run
from defects.training.fold import train_fold
from defects.training.loop import make_accelerator
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


def ensure_runs(arguments: Namespace) -> list[Run]:
    """The runs that a command names; the default run is trained on fold 0 first, where nothing is trained."""
    if not arguments.runs:
        config = load_config(ROOT / "configs" / "demo.yaml")
        config = config.model_copy(update={"output": cli.output_folder(arguments)})
        run = Run(config)
        if not run.trained_folds() and not run.is_finished(FULL):
            print(f"{run.folder} holds no trained fold: training fold 0 first")
            train_fold(config, "0", ensure_tables(config).folds)
    return cli.runs_from(arguments)


def ensure_test_scores(runs: list[Run], images: pd.DataFrame) -> None:
    """Score the test images with the models of those runs that have not been scored at all."""
    for run in runs:
        if not (run.folder / "test.csv").exists():
            print(f"{run.folder / 'test.csv'} is missing: scoring the test images first")
            score_test(run, images, None, make_accelerator(run.config.train))
