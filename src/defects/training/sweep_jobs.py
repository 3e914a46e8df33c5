"""Many experiments from one YAML: their names, their jobs, and what is done of them.

A job is one experiment on one fold, a process of src/train.py; one more scores the test images.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from defects.config import load_config, read_config_file
from defects.config_schema import ROOT, Config, FolderName, Seed, resolve
from defects.job_process import ScriptJob
from defects.messages import UserError
from defects.runs import FULL, Run, fold_names
from defects.settings import Section, dump_yaml, validate
from defects.training.checkpoint import load_detector

LABEL = re.compile(r"[\w.+-]{1,24}")  # values that can stand in a folder's name
FOLD_INDEPENDENT_SETTINGS = {"image_size", "answers"}  # settings of data that the folds do not depend on
SET_BY_SWEEP = {"train.seed", "experiment", "output"}


class SweepConfig(Section):
    """What a sweep file holds; `name` is the file's own by default."""

    name: FolderName
    config: Path | None = None  # an experiment, or
    data: str | None = None  # a file of configs/data, with `models`
    models: list[str | None] = []  # files of configs/models; null, or none at all: the experiment's own
    seeds: list[Seed] = []  # of train.seed; none: the config's own
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}  # key of --set -> values to try
    folds: Literal["all", "full"] | Annotated[list[str], Field(min_length=1)] = "all"
    infer: bool = False  # score the test images once all folds of an experiment are there

    @model_validator(mode="after")
    def _one_data_set(self) -> "SweepConfig":
        if (self.config is None) == (self.data is None):
            raise ValueError("name one of config (an experiment) and data (with models)")
        if self.data is not None and (not self.models or None in self.models):
            raise ValueError("data needs models: names of configs/models")
        return self

    @field_validator("grid")
    @classmethod
    def _not_its_own(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        refused = sorted(SET_BY_SWEEP & set(grid))
        if refused:
            raise ValueError(f"{', '.join(refused)} is set by the sweep itself (seeds, config)")
        return grid


@dataclass(eq=False)
class Experiment:
    """One point of the sweep: its config, the options of the scripts that lead to it, its folds."""

    config: Config
    options: tuple[str, ...]
    folds: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.config.experiment

    @property
    def run(self) -> Run:
        return Run(self.config)

    @property
    def use(self) -> str:
        """The --use of src/infer.py."""
        if FULL not in self.folds:
            return "folds"
        return "both" if len(self.folds) > 1 else FULL


def load_sweep(path: Path, data: str | None = None) -> SweepConfig:
    """The sweep of a file; `data` takes the place of the data set or the experiment that it names.

    Raises UserError for an unreadable file and unknown keys (naming the nearest known one).
    """
    values = {"name": path.stem} | read_config_file(path)
    if data is not None:
        values |= {"name": f"{values['name']}_{Path(data).stem}", "data": data, "config": None}
    return validate(SweepConfig, values, str(path))


def list_experiments(sweep: SweepConfig, overrides: Iterable[str] = ()) -> list[Experiment]:
    """All combinations, seeds last, always in the same order; `overrides` are `key=value` of all of them.

    Raises UserError for what load_config refuses, for unknown folds, and for experiments that would
    overwrite each other's runs or folds.
    """
    grid = sweep.grid | ({"train.seed": sweep.seeds} if sweep.seeds else {})
    points = itertools.product(sweep.models or [None], *grid.values())
    members = [
        _make_experiment(sweep, model, dict(zip(grid, values, strict=True)), list(overrides))
        for model, *values in points
    ]
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"sweep {sweep.name}: {', '.join(repeated)} stands for several equal settings: drop one"
        )
    first: dict[str, Experiment] = {}  # by data.name: its experiments share one folds.csv
    for member in members:
        sharing = first.setdefault(member.config.data.name, member)
        if _split_settings(sharing.config) != _split_settings(member.config):
            raise UserError(
                f"{sharing.name} and {member.name} differ in data or split settings, but would share the "
                f"folds in {member.config.dataset_dir}: give each a data.name, in a sweep of its own"
            )
    return members


def list_training_jobs(experiment: Experiment, folder: Path) -> dict[str, ScriptJob]:
    """By fold, those that are not done; logs lie in `folder`."""
    jobs = {}
    for fold in experiment.folds:
        if is_trained(experiment.run, fold):
            print(f"{experiment.name} fold {fold} is finished")
        else:
            options = ("--fold", fold, *experiment.options)
            jobs[fold] = _make_job(f"{experiment.name}_{fold}", "train.py", options, folder)
    return jobs


def make_scoring_job(experiment: Experiment, folder: Path) -> ScriptJob | None:
    """The one that scores the test images; None if that is done, or not all folds are trained."""
    complete = all(experiment.run.is_finished(fold) for fold in experiment.folds)
    if not complete or _is_scored(experiment):
        return None
    options = (str(experiment.run.folder), "--use", experiment.use)
    return _make_job(f"{experiment.name}_infer", "infer.py", options, folder)


def list_devices() -> list[str]:
    """Of several GPUs, a value of CUDA_VISIBLE_DEVICES for each; none where there are fewer than two."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        devices = [str(number) for number in range(torch.cuda.device_count())]
    else:
        devices = [name for name in visible.split(",") if name]
    return devices if len(devices) > 1 else []


def is_trained(run: Run, fold: str) -> bool:
    """Whether a fold is finished, and that of the present config and data."""
    try:
        return run.is_finished(fold) and load_detector(run, fold) is not None
    except UserError:
        return False  # train.py will say why, in the job's log


def _is_scored(experiment: Experiment) -> bool:
    try:
        return set(experiment.folds) <= set(experiment.run.load_test_scores()["fold"])
    except UserError:
        return False


def _make_experiment(
    sweep: SweepConfig, model: str | None, settings: dict[str, Any], overrides: list[str]
) -> Experiment:
    sets = overrides + [f"{key}={dump_yaml(value, in_one_line=True)}" for key, value in settings.items()]
    path = None if sweep.config is None else resolve(sweep.config)
    base = load_config(path, sets, sweep.data, model)
    all_folds = fold_names(base)
    folds = sweep.folds
    if folds == "all":
        folds = all_folds[:-1]
    elif folds == FULL:
        folds = [FULL]
    if not set(folds) <= set(all_folds):
        raise UserError(f"sweep {sweep.name}: folds={', '.join(folds)}: there are {', '.join(all_folds)}")
    parts = [f"{_shorten_key(key, list(settings))}{_label_value(value)}" for key, value in settings.items()]
    name = "_".join([base.experiment, *parts])
    options = ["--data", sweep.data] if path is None else ["--config", str(path)]
    options += ["--model", model] if model else []
    for text in [*sets, f"experiment={name}"]:
        options += ["--set", text]
    config = base.model_copy(update={"experiment": name})
    return Experiment(config, tuple(options), tuple(dict.fromkeys(folds)))


def _shorten_key(key: str, keys: list[str]) -> str:
    """The shortest end of a dotted key that no other of `keys` has."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if sum(f".{candidate}".endswith(f".{end}") for candidate in keys) == 1:
            return end
    return key


def _label_value(value: Any) -> str:
    """A value in the name of a folder: as it is written, or a hash of it."""
    text = value if isinstance(value, str) else dump_yaml(value, in_one_line=True)
    return text if LABEL.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:8]


def _split_settings(config: Config) -> dict[str, Any]:
    return config.data.model_dump(exclude=FOLD_INDEPENDENT_SETTINGS) | {"split": config.split.model_dump()}


def _make_job(name: str, script: str, options: tuple[str, ...], folder: Path) -> ScriptJob:
    return ScriptJob(name, ROOT / "src" / script, options, folder / f"{name}.log")
