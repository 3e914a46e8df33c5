"""Figures of several experiments on one data set, or on its categories, side by side.

Everything measured is kept in one long table, a row for each fold, seed and metric, from which means and
spreads are taken. Experiments that differ in their seeds alone count as one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from defects.config import Config, known_detectors, resolve, validate, with_detector
from defects.data.labels import DEFECT
from defects.data.prepare import load_images
from defects.errors import UserError
from defects.files import read_csv, read_json
from defects.report.masks import held_dice
from defects.report.results import all_fold_figures, fold_figures
from defects.scoring.answers import load_answers
from defects.scoring.blending import align_held, experiment_scores
from defects.scoring.estimate import estimate
from defects.scoring.outcome import outcome
from defects.scoring.pixels import Maps
from defects.training.inference import load_test
from defects.training.run import OOF_COLUMNS, TEST_MAPS, run_folder, trained_folds

ACCURACY = ["auroc", "average_precision", "pixel_auroc", "aupro"]  # of one model
COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb"]
OUTCOME = ["auroc", "average_precision", "macro_f1", "macro_f1_at_training_share"]  # of all models together
POOLED = "all"  # in place of a fold
COLUMNS = ["experiment", "category", "detector", "setting", "device", "source", "fold", "metric", "value"]

Value = tuple[str, str, float | None]  # fold, metric, value


@dataclass
class Study:
    """Experiments on one data set, or on one category of it: then its name and theirs end with `ending`."""

    config: Config
    experiments: list[str]
    category: str = ""

    @property
    def ending(self) -> str:
        return f"_{self.category}" if self.category else ""

    @property
    def data_name(self) -> str:
        """Of the data set as a whole."""
        return self.config.data.name.removesuffix(self.ending)


def measure(studies: list[Study], test: bool = False) -> pd.DataFrame:
    """The long table, COLUMNS; `source` is the run folder.

    With `test` the answer key of the test images is read. Raises UserError for experiments that are not
    trained or belong to other data.
    """
    rows = []
    for study in studies:
        names: dict[str, str] = {}  # of the first experiment of each configuration
        for name in dict.fromkeys(study.experiments):
            loaded = run_config(study.config, name)
            shown = names.setdefault(_without_seeds(loaded), name.removesuffix(study.ending))
            run = study.config.model_copy(update={"experiment": name, "split": loaded.split})
            about = (shown, study.category, loaded.model.name, setting(loaded), device(run), name)
            rows += [(*about, *value) for value in measure_one(run, test)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def measure_one(run: Config, test: bool) -> Iterator[Value]:
    """All figures of an experiment: of each fold, and of the folds together."""
    rows = _rows(run)
    oof = _out_of_fold(run, rows)
    for fold, figures in all_fold_figures(run, oof).iterrows():
        yield from ((fold, name, figures[name]) for name in ACCURACY + COSTS)
    yield from _measure_masks(run, rows)
    expected = estimate(oof, **run.threshold.model_dump())
    if expected["defects"] < expected["images"]:  # or there is no macro-F1
        promised = [expected["nested_macro_f1"], *(expected["interval_90"] or ())]
        names = ("macro_f1", "macro_f1_low", "macro_f1_high")
        yield from ((POOLED, name, value) for name, value in zip(names, promised, strict=False))
    if test:
        yield from _measure_test(run, oof, expected)


def _measure_masks(run: Config, rows: pd.DataFrame) -> Iterator[Value]:
    """Dice of each fold by the untuned rule, over all pairs of image and class and over those not empty."""
    dice = held_dice(run, rows)
    if dice is not None:
        for fold, part in dice.groupby("fold"):
            yield fold, "dice", part["dice"].mean()
            yield fold, "dice_non_empty", part.loc[~part["empty"], "dice"].mean()


def _measure_test(run: Config, oof: pd.DataFrame, expected: dict) -> Iterator[Value]:
    """`test_…`: of all models averaged, as submitted; `test_model_…`: of each model alone."""
    images, scored = load_images(run), load_test(run)
    share = float(images.loc[images["split"] == "train", "label"].astype(float).mean())
    known = scored.rename(columns={"score": "raw"}).merge(load_answers(run), on="image_id", how="left")
    if known["label"].isna().any():
        lacking = known.loc[known["label"].isna(), "image_id"].nunique()
        raise UserError(f"{run.experiment}: the answer key lacks {lacking} of its test images")
    sizes = images[["image_id", "width", "height"]]
    for fold, rows in known.merge(sizes, on="image_id").groupby("fold"):
        figures = fold_figures(run, fold, rows, Maps(run_folder(run, fold) / TEST_MAPS))
        yield from ((fold, f"test_model_{name}", figures[name]) for name in ACCURACY)
    scores = experiment_scores(oof, scored)[1]
    table = known.drop_duplicates("image_id").set_index("image_id")[["label"]].assign(score=scores)
    table["answer"] = (table["score"] >= expected["score_threshold"]).astype(int)
    figures = outcome(table, share)
    yield from ((POOLED, f"test_{name}", figures[name]) for name in OUTCOME)


def _rows(run: Config) -> pd.DataFrame:
    """OOF_COLUMNS of all finished folds."""
    files = [run_folder(run, fold) / "oof.csv" for fold in trained_folds(run)]
    return pd.concat([read_csv(path, OOF_COLUMNS, "src/train.py") for path in files], ignore_index=True)


def _out_of_fold(run: Config, rows: pd.DataFrame) -> pd.DataFrame:
    """As results.out_of_fold, but of `rows`, whatever seed the folds were cut with.

    Raises UserError when its images or labels are not those of the present images.csv.
    """
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


def trained_experiments(config: Config) -> list[str]:
    """Folders of output/ that hold a trained fold on this data set."""
    runs = sorted(resolve(config.output).glob("*/fold*/best.pt"))
    names = dict.fromkeys(path.parents[1].name for path in runs)
    return [name for name in names if _run_values(config, name)["data"]["name"] == config.data.name]


def run_config(config: Config, name: str) -> Config:
    """What an experiment was trained with. UserError if it is not trained, or on another data set."""
    if not any((resolve(config.output) / name).glob("fold*/best.pt")):
        known = ", ".join(trained_experiments(config)) or "nothing"
        raise UserError(
            f"{resolve(config.output) / name} holds no trained fold: run src/train.py first (trained on "
            f"{config.data.name} so far: {known})"
        )
    loaded = validate(Config, _run_values(config, name), f"config.yaml of {name}")
    if loaded.data.name != config.data.name:
        raise UserError(f"{name} was trained on {loaded.data.name}, not on {config.data.name}: leave it out")
    return loaded


def setting(run: Config) -> str:
    """`published` or `reduced` if `run` is set as a file of configs/detectors says, `own` otherwise."""
    values = run.model_dump(mode="json")
    for name in known_detectors():
        if _method(validate(Config, with_detector(values, name), name)) == _method(run):
            return "reduced" if name.endswith("_reduced") else "published"
    return "own"


def _method(config: Config) -> dict:
    """What makes a detector what it is: not its seed, nor where its weights lie, nor the machine."""
    values = config.model_dump(mode="json", include={"model", "train", "augment"})
    for key in ("seed", "workers", "precision", "channels_last", "save_every"):
        del values["train"][key]
    values["model"]["options"].pop("teacher", None)
    if values["model"]["backbone"]:
        del values["model"]["backbone"]["weights"]
    return values | {"image_size": list(config.data.image_size)}


def device(run: Config) -> str:
    """What the first fold was fitted on, where that is known."""
    costs = read_json(run_folder(run, trained_folds(run)[0]) / "costs.json")
    return (costs or {}).get("device", "")


def _run_values(config: Config, name: str) -> dict:
    path = _config_file(resolve(config.output) / name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return values | {"data": dict(values["data"])}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable ({' '.join(str(error).split())}): train again") from None


def _config_file(folder: Path) -> Path:
    return next(path.parent / "config.yaml" for path in sorted(folder.glob("fold*/best.pt")))


def _without_seeds(config: Config) -> str:
    """Equal for configurations that differ in their seeds, names and folders alone."""
    values = config.model_dump(mode="json", exclude={"experiment", "output", "submissions", "tracking"})
    for section in ("train", "split"):
        del values[section]["seed"]
    for place in ("root", "answers"):
        del values["data"][place]
    return json.dumps(values, sort_keys=True)
