"""The learning rate from step to step: one curve without jumps, warm-ups that fit into the training."""

import numpy as np
import pytest
import torch

from defects.config import TrainConfig
from defects.errors import UserError
from defects.training.loop import make_scheduler

LR = 0.01


def rates(batches: int, **settings) -> np.ndarray:
    """The learning rate of every optimiser step."""
    train = TrainConfig(lr=LR, **settings)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make_scheduler(train, optimizer, batches)
    found = []
    for step in range(train.steps or train.epochs * -(-batches // train.accumulate)):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return np.array(found)


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
def test_after_the_warm_up_the_rate_falls_from_where_it_is(settings):
    found = rates(40, **settings)
    epoch = -(-40 // settings.get("accumulate", 1))
    warmup = round(settings["warmup_epochs"] * epoch)
    steps_up, steps_down = np.diff(found[: warmup + 1]), np.diff(found[warmup:])
    assert (steps_up > 0).all() and (steps_down < 0).all()
    assert found.max() == pytest.approx(LR, rel=0.03)
    # No step is larger than those of a warm-up and of a cosine of that length.
    steepest = max(LR / max(warmup, 1), 1.6 * LR / max(len(found) - warmup, 1))
    assert np.abs(np.diff(found)).max() <= steepest
    assert warmup == len(found) or found[-1] < 0.1 * LR


def test_milestones_are_shares_of_all_steps_in_any_order():
    found = rates(10, epochs=10, warmup_epochs=2, milestones=[0.8, 0.5], lr_factor=0.1)
    changes = np.flatnonzero(np.diff(found[20:]) < 0) + 21
    assert changes.tolist() == [49, 79]  # timm takes a milestone a step early
    assert found[[20, 48, 60, 99]] == pytest.approx([LR, LR, 0.1 * LR, 0.01 * LR])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 30, "warmup_epochs": 4}, r"train.warmup_epochs=4 \(40 .*longer than train.steps=30"),
        (
            {"epochs": 10, "warmup_epochs": 3, "milestones": [0.2]},
            "0.2 of 100 steps is not after train.warmup_e",
        ),
    ],
)
def test_a_warm_up_that_does_not_fit_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        rates(10, **settings)


def test_a_warm_up_longer_than_the_epochs_is_refused_with_both_values():
    with pytest.raises(ValueError, match="train.warmup_epochs=5 is longer than train.epochs=3"):
        TrainConfig(epochs=3, warmup_epochs=5)


def test_nothing_is_warmed_up_where_nothing_is_trained():
    assert len(rates(10, epochs=0)) == 0
