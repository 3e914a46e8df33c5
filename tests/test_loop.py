"""The training loop's parts: the learning rate from step to step, and averages of the weights."""

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3

from defects.config_schema import TrainConfig
from defects.messages import UserError
from defects.training.loop import average_weights, count_epochs, make_scheduler

LR = 0.01


def rates(batches: int, **settings) -> np.ndarray:
    """The learning rate of every optimiser step."""
    train = TrainConfig(lr=LR, **settings)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make_scheduler(train, optimizer, batches)
    learning_rates = []
    steps_of_epoch = -(-batches // train.accumulate)
    for step in range(train.steps or count_epochs(train, steps_of_epoch) * steps_of_epoch):
        scheduler.step_update(step)
        learning_rates.append(optimizer.param_groups[0]["lr"])
    return np.array(learning_rates)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 5, "warmup_epochs": 3},
        {"epochs": 12, "warmup_epochs": 1},
        {"epochs": 4, "warmup_epochs": 0.5, "accumulate": 3},
        {"steps": 95, "warmup_epochs": 2},
        {"epochs": 2, "warmup_epochs": 2},
        {"epochs": 3, "warmup_epochs": 0},
    ],
)
def test_make_scheduler_falls_from_the_rate_that_the_warm_up_reaches(settings):
    lr = rates(40, **settings)
    epoch = -(-40 // settings.get("accumulate", 1))
    warmup = round(settings["warmup_epochs"] * epoch)
    steps_up, steps_down = np.diff(lr[: warmup + 1]), np.diff(lr[warmup:])
    assert (steps_up > 0).all() and (steps_down < 0).all()
    assert lr.max() == pytest.approx(LR, rel=0.03)
    # No step is larger than those of a warm-up and of a cosine of that length.
    steepest = max(LR / max(warmup, 1), 1.6 * LR / max(len(lr) - warmup, 1))
    assert np.abs(np.diff(lr)).max() <= steepest
    assert warmup == len(lr) or lr[-1] < 0.1 * LR


def test_make_scheduler_takes_milestones_as_shares_of_all_steps_in_any_order():
    lr = rates(10, epochs=10, warmup_epochs=2, milestones=[0.8, 0.5], lr_factor=0.1)
    changes = np.flatnonzero(np.diff(lr[20:]) < 0) + 21
    assert changes.tolist() == [49, 79]  # timm takes a milestone a step early
    assert lr[[20, 48, 60, 99]] == pytest.approx([LR, LR, 0.1 * LR, 0.01 * LR])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 30, "warmup_epochs": 4}, r"train.warmup_epochs=4 \(40 .*longer than train.steps=30"),
        (
            {"epochs": 10, "warmup_epochs": 3, "milestones": [0.2]},
            "0.2 of 100 steps is not after train.warmup_e",
        ),
    ],
)
def test_make_scheduler_refuses_a_warm_up_that_does_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        rates(10, **settings)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"epochs": 8}, 8),
        ({"epochs": 8, "least_steps": 80}, 8),
        ({"epochs": 8, "least_steps": 81}, 9),
        ({"epochs": 0, "warmup_epochs": 0, "least_steps": 81}, 0),
        ({"epochs": 8, "steps": 25, "least_steps": 81}, 3),
    ],
)
def test_count_epochs_makes_more_of_them_for_least_steps(settings, epochs):
    assert count_epochs(TrainConfig(**settings), 10) == epochs


def test_make_scheduler_comes_down_over_the_epochs_of_least_steps():
    lr = rates(10, epochs=2, warmup_epochs=1, least_steps=75)
    assert len(lr) == 80
    assert lr[-1] < 0.01 * LR < lr[60]


def test_train_config_refuses_a_warm_up_longer_than_the_epochs():
    with pytest.raises(ValueError, match="train.warmup_epochs=5 is longer than train.epochs=3"):
        TrainConfig(epochs=3, warmup_epochs=5)


def test_make_scheduler_warms_nothing_up_without_epochs():
    assert len(rates(10, epochs=0)) == 0


def small_network() -> torch.nn.Sequential:
    """Weights, running statistics and a counter."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def train_a_little(network: torch.nn.Module) -> None:
    """Changes every weight, running statistic and counter."""
    network(torch.rand(2, 3, 8, 8))
    with torch.no_grad():
        for weights in network.parameters():
            weights += torch.rand_like(weights)


def test_average_weights_of_ema_are_those_of_timm():
    network = small_network()
    average = average_weights(TrainConfig(ema=0.6), network)
    reference = ModelEmaV3(network, decay=0.6, use_warmup=True)
    for step in range(1, 6):
        train_a_little(network)
        average.update_parameters(network)
        reference.update(network, step=step)
    for name, value in reference.module.state_dict().items():
        assert torch.equal(average.module.state_dict()[name], value), name
