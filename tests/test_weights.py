"""How weights are averaged."""

import pytest
import torch

from defects.config import load_config
from defects.training import checkpoint
from defects.training.run import run_folder


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
    return checkpoint.load(run_folder(config, "0") / "best.pt")["detector"]


def test_the_last_epochs_are_averaged(path, run_script):
    sets = [
        part
        for value in ("train.epochs=2", "train.average=2", "experiment=mean")
        for part in ("--set", value)
    ]
    assert run_script("train.py", "--config", path, *sets).code == 0
    folder = run_folder(load_config(path), "0")
    epochs = [checkpoint.load(folder / f"epoch{number}.pt") for number in (1, 2)]
    averaged = best(path, "mean")
    assert not torch.equal(*(state["network.conv_stem.weight"] for state in epochs))
    for name, value in averaged.items():
        expected = torch.stack([state[name].double() for state in epochs]).mean(0)
        wanted = expected if value.is_floating_point() else epochs[1][name].double()
        assert torch.allclose(value.double(), wanted, atol=1e-6), name
