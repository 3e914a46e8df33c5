"""Sweeps: names, jobs, what a child is told, failures, going on, and two processes that share the jobs."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from forked import start_two

from defects.config_schema import ROOT
from defects.training import sweep_jobs as library


@pytest.fixture
def write_sweep(make_dataset, config_file, tmp_path):
    """write_sweep(**values) -> path of a sweep over the tiny data set and classifier."""
    config = config_file(make_dataset())

    def write(**values):
        path = tmp_path / "lrs.yaml"
        path.write_text(yaml.safe_dump({"config": str(config)} | values, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def children(monkeypatch):
    """The commands and environments that would be run; those whose text holds `children.broken` fail."""

    class Calls(list):
        broken = "nothing"

        def run(self, command, stdout, stderr, env):
            self.append((command, env))
            stdout.write("said by the child")
            return subprocess.CompletedProcess(command, int(self.broken in " ".join(command)) * 2)

    calls = Calls()
    monkeypatch.setattr(library.subprocess, "run", calls.run)
    return calls


def names(path):
    return [each.name for each in library.list_experiments(library.load_sweep(path))]


def test_list_experiments_names_every_combination(write_sweep):
    grid = {"train.lr": [1e-3, 1e-5], "augment": [[], [{"name": "GaussNoise"}]], "model.backbone.name": ["x"]}
    found = names(write_sweep(seeds=[0, 7], grid=grid))
    assert len(set(found)) == len(found) == 8
    assert found[0].startswith("tiny_lr0.001_augment") and found[0].endswith("_namex_seed0")
    assert found[-1].startswith("tiny_lr1.0e-05_augment") and found[-1].endswith("_namex_seed7")
    both = write_sweep(models=[None, "patchcore_reduced"])
    assert names(both) == ["tiny", "tiny_data_patchcore_reduced"]
    clash = {"train.ema": [0.9], "split.seed": [1]}
    assert names(write_sweep(grid=clash, seeds=[0])) == ["tiny_ema0.9_split.seed1_train.seed0"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_list_experiments_of_shipped_sweeps_train_all_folds_of_each_model(path):
    sweep = library.load_sweep(path)
    experiments = library.list_experiments(sweep)
    assert len(experiments) == len(sweep.models)
    assert all(len(experiment.folds) == 5 for experiment in experiments)


def test_load_sweep_takes_another_data_set():
    sweep = library.load_sweep(ROOT / "configs" / "sweeps" / "recipe.yaml", "elpv")
    members = library.list_experiments(sweep, ["data.root=/somewhere"])
    assert sweep.name == "recipe_elpv"
    assert [member.name for member in members] == [f"elpv_{model}" for model in sweep.models]
    for member in members:
        assert member.config.data.root == Path("/somewhere")
        assert "data.root=/somewhere" in member.options


def test_list_experiments_hands_values_on_as_written(write_sweep):
    grid = {
        "train.lr": [1e-5],
        "data.image_size": [[64, 32]],
        "augment": [[{"name": "GaussNoise", "p": 0.5}]],
    }
    (found,) = library.list_experiments(library.load_sweep(write_sweep(grid=grid, seeds=[3])))
    assert found.config.train.lr == 1e-5 and found.config.data.image_size == (64, 32)
    assert found.config.augment == [{"name": "GaussNoise", "p": 0.5}] and found.config.train.seed == 3
    assert found.options[-2:] == ("--set", f"experiment={found.name}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sedes": [1]}, ["unknown key sedes", "seeds"]),
        ({"grid": {"train.lrr": [1]}}, ["train.lrr", "train.lr?"]),
        ({"grid": {"train.seed": [1]}}, ["train.seed", "set by the sweep itself"]),
        ({"grid": {"split.seed": [0, 1]}}, ["share the folds", "data.name"]),
        ({"grid": {"train.lr": []}}, ["grid.train.lr"]),
        ({"seeds": [1, 1]}, ["tiny_seed1", "several"]),
        ({"folds": [0, 2]}, ["folds=0, 2", "0, 1, full"]),
        ({"models": ["patchcor"]}, ["patchcor", "patchcore_reduced"]),
    ],
)
def test_load_sweep_refuses_wrong_files_in_one_line(
    write_sweep, fails_with_one_line, children, values, words
):
    message = fails_with_one_line("sweep.py", write_sweep(**values))
    assert all(word in message for word in words), message
    assert not children


def test_job_environment_knows_nothing_of_the_launcher(monkeypatch):
    added = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_WORLD_SIZE"]
    added += ["MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"]
    for name in added:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    told = library.job_environment()
    assert not set(added) & set(told) and told["PATH"] == os.environ["PATH"]
    assert told["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert library.job_environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_sweep_names_failed_jobs_at_the_end(write_sweep, run_script, children, tmp_path):
    children.broken = "train.lr=0.1"
    outcome = run_script("sweep.py", write_sweep(grid={"train.lr": [0.1, 0.2]}, infer=True))
    assert outcome.code == 2 and outcome.stderr.startswith("error: 2 jobs failed")
    assert [command[command.index("--fold") + 1] for command, _ in children] == ["0", "1", "0", "1"]
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("failed: ")]
    folder = tmp_path / "output" / "sweeps" / "lrs"
    logs = [folder / f"tiny_lr0.1_{fold}.log" for fold in "01"]
    assert lines == [f"failed: tiny_lr0.1, see {log}" for log in logs]
    assert logs[0].read_text(encoding="utf-8") == "said by the child"
    assert pd.read_csv(folder / "summary.csv")["experiment"].tolist() == ["tiny_lr0.2"]


@pytest.mark.skipif(sys.platform == "win32", reason="no gloo rendezvous by default")
def test_sweep_shares_jobs_between_two_processes(write_sweep, run_script, children, tmp_path):
    path = write_sweep(seeds=[5])
    options = library.list_experiments(library.load_sweep(path))[0].options
    assert run_script("train.py", *options, "--fold", "0").code == 0  # in this process, which is quicker
    both = [process.end() for process in start_two(tmp_path, ROOT / "src" / "sweep.py", path)]
    said = "".join(printed for _, printed in both)
    assert [code for code, _ in both] == [0, 0], said
    assert "tiny_seed5 fold 0 is finished" in said and "tiny_seed5_1 done" in said
    folder = tmp_path / "output" / "sweeps" / "lrs"
    before = pd.read_csv(folder / "summary.csv")
    assert before[["seed", "folds"]].to_numpy().tolist() == [[5, 2]] and before.notna().all(axis=None)
    (folder / "summary.csv").unlink()

    outcome = run_script("sweep.py", path)
    assert outcome.code == 0 and not children
    pd.testing.assert_frame_equal(pd.read_csv(folder / "summary.csv"), before)
    assert f"| tiny_seed5 | 5 | 2 | {before['macro-F1 (nested CV)'][0]:.3f} |" in outcome.stdout

    assert run_script("sweep.py", write_sweep(seeds=[5], infer=True)).code == 0
    ((infer, _),) = children
    assert infer[1].endswith("infer.py") and infer[3:5] == ["--use", "folds"]
    # A run of other settings is not taken for this one's.
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 2"))
    run_script("sweep.py", path)
    assert [command[1].endswith("train.py") for command, _ in children[1:3]] == [True, True]


def test_list_experiments_lets_sizes_of_images_share_the_folds(write_sweep):
    sweep = library.load_sweep(write_sweep(grid={"data.image_size": [[32, 32], [64, 64]]}))
    assert [each.config.data.image_size for each in library.list_experiments(sweep)] == [(32, 32), (64, 64)]
