"""The experiments that are trained on a data set, as their run folders tell of them."""

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd

from defects.config import Config, resolve, validate_config
from defects.data.labels import DEFECT
from defects.data.prepare import load_images
from defects.errors import UserError, shorten_names
from defects.files import read_csv
from defects.scoring.blending import align_held
from defects.stamps import settings_but
from defects.training.run import OOF_COLUMNS, run_folder, trained_folds
from defects.yaml_text import parse_yaml

# Names and places, seeds, and what changes no result: experiments that differ in these alone are siblings.
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


def trained_experiments(config: Config) -> list[str]:
    """Folders of output/ that hold a trained fold on this data set."""
    runs = sorted(resolve(config.output).glob("*/fold*/best.pt"))
    names = dict.fromkeys(path.parents[1].name for path in runs)
    return [name for name in names if _run_values(config, name)["data"]["name"] == config.data.name]


def run_config(config: Config, name: str) -> Config:
    """What an experiment was trained with. UserError if it is not trained, or on another data set."""
    if not any((resolve(config.output) / name).glob("fold*/best.pt")):
        known = shorten_names(trained_experiments(config), most=12) or "nothing"
        raise UserError(
            f"{resolve(config.output) / name} holds no trained fold: run src/train.py first (trained on "
            f"{config.data.name} so far: {known})"
        )
    loaded = validate_config(_run_values(config, name), f"config.yaml of {name}")
    if loaded.data.name != config.data.name:
        raise UserError(f"{name} was trained on {loaded.data.name}, not on {config.data.name}: leave it out")
    return loaded


def check_data(config: Config, name: str) -> None:
    """UserError if an experiment was trained on another data set; a notebook's bundle does not tell."""
    trained = sorted((resolve(config.output) / name).glob("fold*/best.pt"))
    if trained and trained[0].with_name("config.yaml").exists():
        run_config(config, name)


def seeds_of(config: Config, name: str) -> list[Config]:
    """The experiment and those trained beside it that differ in their seeds alone, by name.

    What is not readable, or trained on other data, is no sibling; so an experiment without its config.yaml
    has none.
    """
    loaded: dict[str, Config] = {}
    for folder in sorted({path.parents[1].name for path in resolve(config.output).glob("*/fold*/best.pt")}):
        with suppress(UserError):
            loaded[folder] = run_config(config, folder)
    wanted = without_seeds(loaded[name]) if name in loaded else None
    return [
        config.model_copy(update={"experiment": each, "split": run.split})
        for each, run in loaded.items()
        if without_seeds(run) == wanted
    ]


def without_seeds(config: Config) -> str:
    """Equal for configurations that differ in their seeds, names and folders alone."""
    return json.dumps(settings_but(config, NOT_THE_MODEL), sort_keys=True)


def aligned_oof(run: Config) -> pd.DataFrame:
    """As report.results.out_of_fold, but whatever seed the folds were cut with.

    Raises UserError when its images or labels are not those of the present images.csv.
    """
    rows = oof_rows(run)
    oof = rows[rows["target"] == DEFECT].reset_index(drop=True)
    groups = read_csv(run.dataset_dir / "folds.csv", ["image_id", "group"], "src/split.py")
    images = load_images(run).rename(columns={"label": "known"})
    joined = oof.merge(groups[["image_id", "group"]], on="image_id", how="left")
    joined = joined.merge(images, on="image_id", how="left").rename(columns={"score": "raw"})
    wrong = (joined["label"] != joined["known"]).fillna(True) | joined["image_id"].duplicated()
    if wrong.any():
        raise UserError(
            f"{run.experiment_dir}: its out-of-fold images are not those of {run.dataset_dir / 'images.csv'} "
            f"({wrong.sum()} differ, {joined.loc[wrong, 'image_id'].iloc[0]} first): use train.py --restart"
        )
    return joined.assign(score=align_held(oof)[0])


def oof_rows(run: Config) -> pd.DataFrame:
    """OOF_COLUMNS of all finished folds."""
    files = [run_folder(run, fold) / "oof.csv" for fold in trained_folds(run)]
    return pd.concat([read_csv(path, OOF_COLUMNS, "src/train.py") for path in files], ignore_index=True)


def _run_values(config: Config, name: str) -> dict:
    path = _config_file(resolve(config.output) / name)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        return values | {"data": dict(values["data"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not readable ({' '.join(str(error).split())}): train again") from None


def _config_file(folder: Path) -> Path:
    return next(path.parent / "config.yaml" for path in sorted(folder.glob("fold*/best.pt")))
