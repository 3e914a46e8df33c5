"""Sweeps: names, jobs, failures, going on, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from defects import job_process
from defects.config_schema import ROOT
from defects.files import locked
from defects.job_process import ScriptOutcome
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
    """The jobs that would be run; those whose options hold `children.broken` fail."""

    class Calls(list):
        broken = "nothing"

        def run(self, job, environment):
            self.append(job)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("said by the child", encoding="utf-8")
            return ScriptOutcome(int(self.broken in " ".join(job.options)) * 2, 0.0)

    calls = Calls()
    monkeypatch.setattr(job_process, "run_script", calls.run)
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


def test_list_devices_of_several_gpus(monkeypatch):
    for visible, devices in [("4,5,6", ["4", "5", "6"]), ("4", []), ("", [])]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert library.list_devices() == devices


def test_sweep_names_failed_jobs_at_the_end(write_sweep, run_script, children, tmp_path):
    children.broken = "train.lr=0.1"
    outcome = run_script("sweep.py", write_sweep(grid={"train.lr": [0.1, 0.2]}, infer=True))
    assert outcome.code == 2 and outcome.stderr.startswith("error: 2 jobs failed")
    assert [job.options[:2] for job in children] == 2 * [("--fold", "0"), ("--fold", "1")]
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("failed: ")]
    folder = tmp_path / "output" / "sweeps" / "lrs"
    logs = [folder / f"tiny_lr0.1_{fold}.log" for fold in "01"]
    assert lines == [f"failed: tiny_lr0.1, see {log}" for log in logs]
    assert logs[0].read_text(encoding="utf-8") == "said by the child"
    assert pd.read_csv(folder / "summary.csv")["experiment"].tolist() == ["tiny_lr0.2"]


def test_sweep_goes_on_where_it_stopped(write_sweep, run_script, children, tmp_path):
    path = write_sweep(seeds=[5])
    options = library.list_experiments(library.load_sweep(path))[0].options
    assert run_script("train.py", *options, "--fold", "0").code == 0
    outcome = run_script("sweep.py", path, "--jobs", 2)
    assert "tiny_seed5 fold 0 is finished" in outcome.stdout and "tiny_seed5_1 done" in outcome.stdout
    assert [job.name for job in children] == ["tiny_seed5_1"]
    assert run_script("train.py", *options, "--fold", "1").code == 0
    children.clear()

    outcome = run_script("sweep.py", path)
    assert outcome.code == 0 and not children
    table = pd.read_csv(tmp_path / "output" / "sweeps" / "lrs" / "summary.csv")
    assert table[["seed", "folds"]].to_numpy().tolist() == [[5, 2]] and table.notna().all(axis=None)
    assert f"| tiny_seed5 | 5 | 2 | {table['macro-F1 (nested CV)'][0]:.3f} |" in outcome.stdout

    assert run_script("sweep.py", write_sweep(seeds=[5], infer=True)).code == 0
    (infer,) = children
    assert infer.script.name == "infer.py" and infer.options[1:] == ("--use", "folds")
    # A run of other settings is not taken for this one's.
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 2"))
    run_script("sweep.py", path)
    assert [job.script.name for job in children[1:3]] == ["train.py", "train.py"]


def test_sweep_refuses_to_be_several_processes(write_sweep, fails_with_one_line, children, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--jobs N" in fails_with_one_line("sweep.py", write_sweep())
    assert not children


def test_sweep_refuses_a_second_command(write_sweep, fails_with_one_line, children, tmp_path):
    with locked(tmp_path / "output" / "sweeps" / "lrs", wait=False):
        assert "being written by another process" in fails_with_one_line("sweep.py", write_sweep())
    assert not children


def test_list_experiments_lets_sizes_of_images_share_the_folds(write_sweep):
    sweep = library.load_sweep(write_sweep(grid={"data.image_size": [[32, 32], [64, 64]]}))
    assert [each.config.data.image_size for each in library.list_experiments(sweep)] == [(32, 32), (64, 64)]
