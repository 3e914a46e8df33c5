"""Runs: folders below output/ that hold one experiment's trained folds, with their configuration and scores.

A run carries its own configuration: fold<k>/config.yaml, written when the fold was trained. Everything that
works on trained runs reads it from there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defects.config import apply_overrides, read_config_file, validate_config
from defects.config_schema import Config, resolve
from defects.data.labels import DEFECT
from defects.files import read_csv, read_json
from defects.messages import UserError, shorten_names
from defects.stamps import Stamp, content_of, differences, join_differences, settings_but

FULL = "full"  # in place of a fold's number: the fit on every training image
OOF_MAPS = "oof_maps.npz"  # in a fold's folder
TEST_MAPS = "test_maps.npz"
UPDATE = "update"  # folder in a fold's folder: files of src/update.py on their way into it
OOF_COLUMNS = ["image_id", "target", "fold", "label", "score", "probability"]
TEST_COLUMNS = ["image_id", "target", "fold", "score", "probability"]
# Settings that a command may change for a trained run: places, and what is decided after training.
PLACES = ("output", "submissions", "data.root", "data.answers", "data.roi.mask", "data.roi.folder")
CHANGEABLE = (
    *PLACES,
    "data.kaggle",
    "data.pixel_size_mm",
    "train.workers",
    "infer",
    "threshold",
    "claims",
    "ensemble",
    "tracking",
)
NOT_THE_SCORES = {"infer.batch_size", "infer.shard"}  # settings of infer that change no test score


def fold_names(config: Config) -> list[str]:
    """The folds' numbers in order, and FULL."""
    return [*map(str, range(config.split.folds)), FULL]


@dataclass(frozen=True)
class Run:
    """One experiment's folder and configuration; the files in it are read when asked for."""

    config: Config

    @classmethod
    def open(cls, folder: Path, overrides: Iterable[str] = ()) -> "Run":
        """The run in `folder`, which may have been moved or renamed since it was trained.

        Its configuration is that of its first finished fold, or else of the first one begun. `overrides` are
        `key=value` of CHANGEABLE settings. Raises UserError where there is no run, and for other settings.
        """
        begun = [path.parent for path in _in_folds(folder, "config.yaml")]
        finished = [place for place in begun if (place / "best.pt").exists()]
        if not begun:
            names = shorten_names(list_runs(folder.parent), most=12) or "none"
            raise UserError(
                f"{folder} holds no trained fold: run src/train.py first, or name one of the runs in "
                f"{folder.parent}: {names}"
            )
        path = (finished or begun)[0] / "config.yaml"
        values = read_config_file(path) | {"experiment": folder.name, "output": str(folder.parent)}
        stored = validate_config(values, str(path))
        overrides = list(overrides)
        if not overrides:
            return cls(stored)
        config = validate_config(apply_overrides(values, overrides), str(path))
        _refuse_other_settings(stored, config)
        return cls(config)

    @property
    def name(self) -> str:
        return self.config.experiment

    @property
    def folder(self) -> Path:
        return self.config.experiment_dir

    def fold_folder(self, fold: str) -> Path:
        return self.folder / fold_folder_name(fold)

    def is_finished(self, fold: str) -> bool:
        return (self.fold_folder(fold) / "best.pt").exists()

    def trained_folds(self) -> list[str]:
        """Finished folds in order, without FULL."""
        return [fold for fold in fold_names(self.config) if fold != FULL and self.is_finished(fold)]

    def held_out_folds(self) -> list[str]:
        """Models with rows in oof.csv: the trained folds; without any, a full fit that has a hold-out."""
        names = self.trained_folds()
        if not names and self.is_finished(FULL) and (self.fold_folder(FULL) / "oof.csv").exists():
            return [FULL]
        return names

    def refuse_half_updated(self, fold: str) -> None:
        """UserError if src/update.py was stopped while it put its files into place: they belong together."""
        folder = self.fold_folder(fold)
        if (folder / UPDATE).exists():
            raise UserError(
                f"{folder}: an update was interrupted; run src/update.py again, which completes it"
            )

    # --- out-of-fold scores ------------------------------------------------------------------------------

    def read_oof(self) -> pd.DataFrame:
        """OOF_COLUMNS of held_out_folds, as written. Raises UserError if there are none."""
        names = self.held_out_folds()
        if not names and self.is_finished(FULL):
            raise UserError(
                f"{self.folder} holds the full fit alone, which has seen every training image: a threshold "
                "needs held-out images, so train the folds with src/train.py --fold all"
            )
        if not names:
            raise UserError(f"{self.folder} holds no oof.csv of a finished fold: run src/train.py first")
        for fold in names:
            self.refuse_half_updated(fold)
        files = [self.fold_folder(fold) / "oof.csv" for fold in names]
        return pd.concat([read_csv(path, OOF_COLUMNS, "src/train.py") for path in files], ignore_index=True)

    def load_oof(self, folds: pd.DataFrame, targets: tuple[str, ...] = (DEFECT,)) -> pd.DataFrame:
        """Out-of-fold rows of held_out_folds for `targets`, with the group of each image.

        `folds` is the table of folds.csv. Raises UserError if there are none, or if images or labels are
        not those of this table.
        """
        oof = self.read_oof()
        oof = oof[oof["target"].isin(targets)]
        answered = pd.DataFrame({"target": oof["target"].unique()})
        expected = folds[["image_id", "fold", "group"]]
        if self.held_out_folds() == [FULL]:
            is_scored = expected["image_id"].isin(oof["image_id"])
            expected = expected[is_scored].assign(fold=FULL).merge(answered, "cross")
        else:
            expected = expected[expected["fold"].isin(self.trained_folds())].merge(answered, "cross")
        keys = ["image_id", "fold", "target"]
        joined = oof.merge(expected, on=keys, how="outer", indicator=True)
        differing = joined.loc[(joined["_merge"] != "both") | joined.duplicated(keys), "image_id"]
        if len(differing):
            raise UserError(
                f"{self.folder}: its out-of-fold images are not those of "
                f"{self.config.dataset_dir / 'folds.csv'} ({len(differing)} differ, {differing.iloc[0]} "
                "first): train again with --restart"
            )
        labels = joined["image_id"].map(folds.set_index("image_id")["label"]).astype(float)
        has_other_label = (joined["target"] == DEFECT) & (joined["label"].astype(float) != labels)
        if has_other_label.any():
            first = joined.loc[has_other_label, "image_id"].iloc[0]
            raise UserError(
                f"{self.folder}: {has_other_label.sum()} out-of-fold labels are not those of "
                f"{self.config.dataset_dir / 'images.csv'} ({first} first): train again with --restart"
            )
        return joined.drop(columns="_merge")

    # --- test scores -------------------------------------------------------------------------------------

    def load_test_scores(self, targets: tuple[str, ...] = (DEFECT,)) -> pd.DataFrame:
        """Rows of test.csv for `targets`. Raises UserError when it was scored with other models than those
        trained now.
        """
        path = self.folder / "test.csv"
        table = read_csv(path, TEST_COLUMNS, "src/infer.py")
        scored = sorted(set(table["fold"]))
        trained = self.trained_folds()
        is_of_other_folds = set(scored) - {FULL} not in (set(), set(trained))
        if set(scored) - set(fold_names(self.config)) or is_of_other_folds:
            models = f"folds {', '.join(scored)}; trained are {', '.join(trained)}"
            raise UserError(f"{path} was scored with other models ({models}): run src/infer.py again")
        settings = self._infer_settings()
        for fold in scored:
            changes = differences(self.read_score_stamp(fold), self.score_stamp(fold), but=settings)
            if changes:
                raise UserError(
                    f"{path} was scored with other models ({name_model(fold)}: {join_differences(changes)}): "
                    "run src/infer.py again"
                )
        if self.config.data.classes:
            self._check_map_sizes(scored)
        return table[table["target"].isin(targets)].reset_index(drop=True)

    def score_stamp(self, fold: str) -> Stamp:
        """What a fold's test scores and maps are made from; None for a model that is gone.

        All else that they depend on is in the fingerprint of the model.
        """
        files = [self.fold_folder(fold) / "best.pt", self.config.dataset_dir / "images.csv"]
        return {
            "settings": self._infer_settings(),
            "files": {path.name: content_of(path) for path in files},
        }

    def read_score_stamp(self, fold: str) -> dict[str, Any] | None:
        """The stamp beside the test scores of a fold."""
        return read_json(self.fold_folder(fold) / "test.json")

    def is_scored(self, fold: str) -> bool:
        """Whether the test scores of a fold are there, and those of its present model and settings."""
        is_there = (self.fold_folder(fold) / "test.csv").exists()
        return is_there and not differences(self.read_score_stamp(fold), self.score_stamp(fold))

    def _infer_settings(self) -> dict[str, Any]:
        return settings_but(self.config.infer, NOT_THE_SCORES, "infer.")

    def _check_map_sizes(self, folds: list[str]) -> None:
        """UserError where test maps have another size than the out-of-fold maps that masks are fitted on."""
        for fold in folds:
            folder = self.fold_folder(fold)
            config = validate_config(read_config_file(folder / "config.yaml"), str(folder))
            oof_size = config.infer.map_size
            test_size = (self.read_score_stamp(fold) or {})["settings"].get("infer.map_size")
            if test_size != oof_size:
                raise UserError(
                    f"{folder}: its test maps were made with infer.map_size={test_size}, its out-of-fold "
                    f"maps with {oof_size}: run src/infer.py with {oof_size}, or src/train.py with "
                    f"{test_size}, which then only scores again"
                )

    # --- costs and history -------------------------------------------------------------------------------

    def read_costs(self, fold: str) -> dict[str, Any]:
        """Time, memory and size of a fold's training; empty where nothing was noted."""
        return read_json(self.fold_folder(fold) / "costs.json") or {}

    def read_history(self, fold: str) -> pd.DataFrame:
        """metrics.jsonl as a table, a row per epoch; empty for a detector without epochs."""
        path = self.fold_folder(fold) / "metrics.jsonl"
        if not path.exists():
            return pd.DataFrame()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return pd.DataFrame([json.loads(line) for line in lines]).replace([np.inf, -np.inf], np.nan)
        except ValueError as error:
            raise UserError(f"{path} is not readable ({error}): train again with --restart") from None


def fold_folder_name(fold: str) -> str:
    """Of a fold's folder in that of its run."""
    return FULL if fold == FULL else f"fold{fold}"


def name_model(fold: str) -> str:
    """A fold's model in words."""
    return "the full fit" if fold == FULL else f"fold {fold}"


def list_runs(output: Path) -> list[str]:
    """Names of the folders in `output` that hold a finished fold."""
    names = (path.parents[1].name for path in sorted(output.glob("*/*/best.pt")) if _is_fold(path.parent))
    return list(dict.fromkeys(names))


def find_runs(names: Iterable[str], output: Path, overrides: Iterable[str] = ()) -> list[Run]:
    """Runs by their names below `output`, by patterns of names (`mine_*`), or by paths to their folders.

    In the order given, each once. Raises UserError for a name that is no run.
    """
    overrides = list(overrides)
    folders: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if any(letter in name for letter in "*?["):
            matching = [run for run in list_runs(output) if fnmatchcase(run, name)]
            if not matching:
                trained = shorten_names(list_runs(output), most=12) or "none"
                raise UserError(f"no run in {output} matches {name}; trained are: {trained}")
            folders |= dict.fromkeys(output / run for run in matching)
        elif len(path.parts) > 1 or path.is_absolute():
            folders[path.absolute() if path.is_dir() else resolve(path)] = None
        else:
            folders[output / name] = None
    return [Run.open(folder, overrides) for folder in folders]


def runs_on(data_name: str, output: Path) -> list[Run]:
    """The finished runs in `output` that were trained on a data set; unreadable ones are left out."""
    runs = []
    for name in list_runs(output):
        try:
            run = Run.open(output / name)
        except UserError:
            continue
        if run.config.data.name == data_name:
            runs.append(run)
    return runs


def check_same_data(runs: list[Run]) -> None:
    """UserError if runs that are to be joined or compared were trained on different data sets."""
    first = runs[0]
    for run in runs[1:]:
        if run.config.data.name != first.config.data.name:
            raise UserError(
                f"{run.name} was trained on {run.config.data.name}, {first.name} on "
                f"{first.config.data.name}: name runs on one data set"
            )


def _in_folds(folder: Path, name: str) -> list[Path]:
    """Files of this name in the folders of a run's folds, in order; that of FULL last."""
    return [path for path in sorted(folder.glob(f"*/{name}")) if _is_fold(path.parent)]


def _is_fold(folder: Path) -> bool:
    return folder.name == FULL or folder.name.removeprefix("fold").isdecimal()


def _refuse_other_settings(stored: Config, config: Config) -> None:
    """UserError if settings that the training used are to be changed."""
    then = settings_but(stored, set(CHANGEABLE))
    now = settings_but(config, set(CHANGEABLE))
    changes = differences({"settings": then, "files": {}}, {"settings": now, "files": {}})
    if changes:
        allowed = ", ".join(CHANGEABLE)
        raise UserError(
            f"{stored.experiment_dir} was trained with other settings ({join_differences(changes)}): leave "
            f"them out, or train another run with src/train.py; of a trained run {allowed} can be set"
        )
