"""How weights are averaged; how long scoring will take."""

import pytest
import torch

from defects.config import load_config
from defects.runs import Run
from defects.training import checkpoint


@pytest.fixture
def path(make_dataset, config_file, run_script):
    """Path of a config whose fold 0 is trained for two epochs, each of them kept."""
    path = config_file(make_dataset())
    outcome = run_script(
        "train.py", "--config", path, "--set", "train.epochs=2", "--set", "train.save_every=1"
    )
    assert outcome.code == 0
    return path


def best(path, experiment=None):
    config = load_config(path, [f"experiment={experiment}"] if experiment else [])
    return checkpoint.load(Run(config).fold_folder("0") / "best.pt")["detector"]


def test_the_last_epochs_are_averaged(path, run_script):
    sets = [
        part
        for value in ("train.epochs=2", "train.average=2", "experiment=mean")
        for part in ("--set", value)
    ]
    assert run_script("train.py", "--config", path, *sets).code == 0
    folder = Run(load_config(path)).fold_folder("0")
    epochs = [checkpoint.load(folder / f"epoch{number}.pt") for number in (1, 2)]
    averaged = best(path, "mean")
    assert not torch.equal(*(state["network.conv_stem.weight"] for state in epochs))
    for name, value in averaged.items():
        expected = torch.stack([state[name].double() for state in epochs]).mean(0)
        wanted = expected if value.is_floating_point() else epochs[1][name].double()
        assert torch.allclose(value.double(), wanted, atol=1e-6), name


def test_scoring_states_its_time_and_refuses_more_than_the_budget(path, run_script, fails_with_one_line):
    small = ["--config", path, "--set", "train.epochs=2", "--set", "infer.batch_size=1"]
    message = fails_with_one_line("infer.py", *small, "--set", "infer.budget_minutes=0.000001")
    assert "infer.budget_minutes=1e-06" in message and "6 images with 1 models" in message
    outcome = run_script("infer.py", *small, "--set", "infer.budget_minutes=60")
    assert outcome.code == 0 and "this will take about 0.0 minutes" in outcome.stdout
    again = run_script("infer.py", *small)
    assert again.code == 0 and "this will take" not in again.stdout
