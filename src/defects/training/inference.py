"""Test scores of an experiment: one row per image and fold, resumable fold by fold and shard by shard."""

from typing import Any

import pandas as pd
from accelerate import Accelerator

from defects.config import Config, load_config
from defects.data.labels import DEFECT
from defects.data.prepare import load_images
from defects.data.split import FULL, fold_names
from defects.errors import UserError
from defects.files import read_csv, read_json, write_csv, write_json
from defects.stamps import Stamp, content_of, differences, in_short, settings_but
from defects.training.run import (
    finished,
    load_detector,
    run_folder,
    train_fold,
    trained_folds,
)
from defects.training.shards import TEST_COLUMNS, Shards
from defects.training.trainer import make_accelerator

NOT_THE_SCORES = {"infer.batch_size", "infer.shard"}


def score_test(config: Config, use: str) -> None:
    """Write test.csv (TEST_COLUMNS); `use` is folds, full or both.

    Trains fold 0 first, and says so, when nothing was trained. Raises UserError without test images.
    """
    accelerator = make_accelerator(config.train)
    with accelerator.main_process_first():
        images = load_images(config)
    test = images[images["split"] == "test"].reset_index(drop=True)
    if test.empty:
        raise UserError(
            f"{config.dataset_dir / 'images.csv'} lists no test images: there is nothing to score"
        )
    models = _models(config, use, accelerator)
    accelerator.print(f"scoring {len(test)} test images with {', '.join(_name(fold) for fold in models)}")
    if accelerator.is_main_process and not all(_scored(config, fold) for fold in models):
        # It is joined last: from an interruption on it would not be what the folds say.
        (config.experiment_dir / "test.csv").unlink(missing_ok=True)
    for fold in models:
        _score_fold(config, test, fold, accelerator)
    if accelerator.is_main_process:
        files = [run_folder(config, fold) / "test.csv" for fold in models]
        tables = [read_csv(path, TEST_COLUMNS, "src/infer.py") for path in files]
        table = pd.concat(tables).sort_values(["image_id", "fold"], kind="stable", ignore_index=True)
        write_csv(config.experiment_dir / "test.csv", table[TEST_COLUMNS])
    accelerator.wait_for_everyone()


def load_test(config: Config, targets: tuple[str, ...] = (DEFECT,)) -> pd.DataFrame:
    """Rows of test.csv for `targets`. Raises UserError when it was scored with other models than those
    trained now.
    """
    path = config.experiment_dir / "test.csv"
    table = read_csv(path, TEST_COLUMNS, "src/infer.py")
    scored, trained = sorted(set(table["fold"])), trained_folds(config)
    if set(scored) - set(fold_names(config)) or set(scored) - {FULL} not in (set(), set(trained)):
        models = f"folds {', '.join(scored)}; trained are {', '.join(trained)}"
        raise UserError(f"{path} was scored with other models ({models}): run src/infer.py again")
    for fold in scored:
        found = differences(_kept_stamp(config, fold), _stamp(config, fold), but=_settings_of_infer(config))
        if found:
            raise UserError(
                f"{path} was scored with other models ({_name(fold)}: {in_short(found)}): run src/infer.py "
                "again"
            )
    if config.data.classes:
        _check_map_size(config, scored)
    return table[table["target"].isin(targets)].reset_index(drop=True)


def _stamp(config: Config, fold: str) -> Stamp:
    """What a fold's test scores and maps are made from; None for a model that is gone.

    All else that they depend on is in the fingerprint of the model.
    """
    files = [run_folder(config, fold) / "best.pt", config.dataset_dir / "images.csv"]
    return {
        "settings": _settings_of_infer(config),
        "files": {path.name: content_of(path) for path in files},
    }


def _settings_of_infer(config: Config) -> dict[str, Any]:
    return settings_but(config.infer, NOT_THE_SCORES, "infer.")


def _kept_stamp(config: Config, fold: str) -> dict[str, Any] | None:
    """The stamp beside the test scores of a fold."""
    return read_json(run_folder(config, fold) / "test.json")


def _scored(config: Config, fold: str) -> bool:
    """Whether the test scores of a fold are there, and those of its present model and settings."""
    is_there = (run_folder(config, fold) / "test.csv").exists()
    return is_there and not differences(_kept_stamp(config, fold), _stamp(config, fold))


def _check_map_size(config: Config, folds: list[str]) -> None:
    """UserError where test maps have another size than the out-of-fold maps that masks are fitted on."""
    for fold in folds:
        path = run_folder(config, fold) / "config.yaml"
        if not path.exists():  # in a notebook's bundle
            continue
        kept = load_config(path).infer.map_size
        scored = (_kept_stamp(config, fold) or {})["settings"].get("infer.map_size")
        if scored != kept:
            raise UserError(
                f"{path.parent}: its test maps were made with infer.map_size={scored}, its out-of-fold maps "
                f"with {kept}: run src/infer.py with {kept}, or src/train.py with {scored}, which then only "
                "scores again"
            )


def _models(config: Config, use: str, accelerator: Accelerator) -> list[str]:
    if use != "folds" and not finished(config, FULL):
        raise UserError(f"{run_folder(config, FULL)} is not trained: run src/train.py --fold {FULL} first")
    if use == FULL:
        return [FULL]
    if not trained_folds(config):
        accelerator.print(f"{config.experiment_dir} holds no trained fold: training fold 0 first")
        train_fold(config, "0")
    return trained_folds(config) + ([FULL] if use == "both" else [])


def _name(fold: str) -> str:
    return "the full fit" if fold == FULL else f"fold {fold}"


def _score_fold(config: Config, test: pd.DataFrame, fold: str, accelerator: Accelerator) -> None:
    """Scores of one model; kept in its run folder with what they were made from."""
    detector, stamp = load_detector(config, fold, other_maps=True), _stamp(config, fold)
    shards = Shards(config, fold, stamp)
    if not _scored(config, fold):
        if (run_folder(config, fold) / "test.csv").exists():
            found = differences(_kept_stamp(config, fold), stamp)
            accelerator.print(f"{_name(fold)} is scored again ({in_short(found)})")
        shards.score(detector, test, accelerator)
        if accelerator.is_main_process:
            write_json(run_folder(config, fold) / "test.json", stamp)
    if accelerator.is_main_process:
        shards.clear()
