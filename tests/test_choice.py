"""Which detector is exported, and what its choice is worth: known out-of-fold scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from defects.config import load_config
from defects.config_schema import Config
from defects.data.fold_files import DataTables
from defects.start.choice import choose_detector

DEFECTS = 10
NORMAL = 30


@dataclass
class ScoredRun:
    """A run whose scores are in memory."""

    name: str
    config: Config
    oof: pd.DataFrame

    def load_oof(self, folds, targets=("defect",)):
        return self.oof[self.oof["target"].isin(targets) & self.oof["image_id"].isin(folds["image_id"])]


@pytest.fixture
def tables():
    labels = np.repeat([1, 0], [DEFECTS, NORMAL])
    ids = [f"{number:03}.png" for number in range(len(labels))]
    folds = np.resize(["0", "1"], len(labels))
    images = pd.DataFrame({"image_id": ids, "label": labels, "kind": ""})
    return DataTables(images, images.assign(fold=folds, group=ids))


@pytest.fixture
def make_run(tables, tmp_path):
    """make_run(name, perfect) -> a run that scores as labelled in the folds `perfect`, inverted in others."""
    config = load_config(None, [f"output={tmp_path}"], "mine", "patchcore_reduced")
    order = np.random.default_rng(0).permutation(len(tables.folds)) / 1000

    def make(name, perfect):
        rows = tables.folds
        is_perfect = rows["fold"].isin(perfect)
        label = rows["label"].where(is_perfect, 1 - rows["label"])
        oof = rows.assign(target="defect", probability=0.2 + 0.6 * label + order)
        return ScoredRun(name, config, oof.assign(score=oof["probability"]))

    return make


def test_choose_detector_takes_the_highest_auroc(tables, make_run):
    choice = choose_detector([make_run("weak", ["0"]), make_run("good", ["0", "1"])], tables)
    assert choice.run.name == "good"
    assert choice.aurocs["good"] == 1.0 > choice.aurocs["weak"]
    assert choice.macro_f1 > 0.7
    assert choice.interval_90[0] < choice.macro_f1
    assert choice.claims.escape.errors < DEFECTS


def test_choose_detector_pays_for_its_choice(tables, make_run):
    """Each run is perfect on one fold and inverted on the other, which then chooses the wrong one."""
    choice = choose_detector([make_run("first", ["0"]), make_run("second", ["1"])], tables)
    assert choice.macro_f1 < 0.5
    assert choice.claims.escape.errors > 0


def test_choose_detector_without_defects_has_no_macro_f1(tables, make_run):
    normal = tables.folds[tables.folds["label"] == 0]
    choice = choose_detector([make_run("alone", ["0", "1"])], tables._replace(folds=normal))
    assert choice.macro_f1 is None
    assert choice.claims.escape is None
    assert choice.claims.false_alarm.images == NORMAL
