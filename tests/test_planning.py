"""What start.py plans for the minutes, from the speed of a machine."""

from dataclasses import replace
from functools import cache

import pytest
from conftest import texture, write_png

from defects.config import load_config
from defects.start import planning
from defects.start.planning import (
    NORMAL_ONLY,
    Counts,
    Plan,
    Speed,
    choose_plan,
    format_seconds,
    measure_speed,
)

MODELS = ["patch_head", "classifier_reduced", "patchcore_reduced"]
QUIET = Speed(forward=0.16, training=0.44, reading=0.001)  # two quiet cores
FEW_IMAGES = Counts(normal=50, defects=20, test=0)


def load(model, settings):
    return load_cached(model, tuple(settings))


@cache
def load_cached(model, settings):
    return load_config(None, settings, "mine", model)


def plan_for(seconds, counts=FEW_IMAGES, speed=QUIET, models=MODELS, is_fixed=False):
    return choose_plan(models, load(NORMAL_ONLY, []), is_fixed, load, counts, speed, seconds)


def test_choose_plan_takes_the_whole_recipe_where_it_fits():
    plan = plan_for(1200)
    assert list(plan.settings) == MODELS
    assert (plan.folds, plan.image_size) == (5, (256, 256))
    assert sum(plan.seconds.values()) <= 1200


def test_choose_plan_takes_less_in_less_time():
    plans = [plan_for(seconds) for seconds in (1200, 280, 200, 100, 10)]
    sizes = [(len(plan.settings), plan.folds, plan.image_size[0]) for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert "classifier_reduced" not in plans[2].settings
    assert list(plans[-1].settings) == [NORMAL_ONLY]
    assert (plans[-1].folds, plans[-1].image_size) == (2, (128, 128))


def test_choose_plan_knows_what_takes_time():
    slower = [
        plan_for(1e9, counts=replace(FEW_IMAGES, test=500)),
        plan_for(1e9, counts=replace(FEW_IMAGES, normal=500)),
        plan_for(1e9, speed=replace(QUIET, forward=0.8)),
        plan_for(1e9, speed=replace(QUIET, reading=0.1)),
    ]
    usual = plan_for(1e9)
    for plan in slower:
        assert all(plan.seconds[name] > usual.seconds[name] for name in MODELS)
    learning = plan_for(1e9, speed=replace(QUIET, training=2.0)).seconds
    assert [learning[name] > usual.seconds[name] for name in MODELS] == [False, True, False]


def test_choose_plan_leaves_a_persons_settings():
    plan = plan_for(10, is_fixed=True)
    assert (plan.folds, plan.image_size) == (5, (256, 256))
    assert list(plan.settings) == [NORMAL_ONLY]


def test_choose_plan_counts_the_least_steps_of_a_classifier():
    few = Counts(normal=25, defects=10, test=0)
    doubled = Counts(normal=50, defects=20, test=0)
    seconds = [plan_for(1e9, counts=counts).seconds["classifier_reduced"] for counts in (few, doubled)]
    assert seconds[1] < 1.5 * seconds[0]


def test_plan_is_the_same_after_json():
    plan = plan_for(280)
    assert Plan.from_json(plan.to_json()) == plan


def test_measure_speed_is_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "PROBE_SECONDS", 0.0)
    config = load("classifier_reduced", ["model.backbone.name=test_efficientnet", "data.image_size=[64, 64]"])
    speed = measure_speed(config, [write_png(tmp_path / "a.png", texture(0))])
    assert min(speed.forward, speed.training, speed.reading) > 0


@pytest.mark.parametrize("seconds", [5.4, 99.0, 100.0, 3600.0])
def test_format_seconds_is_short(seconds):
    assert format_seconds(seconds) in ("5 s", "99 s", "2 min", "60 min")


def test_plan_says_that_it_is_the_least():
    plan = Plan({"patchcore_reduced": ()}, 2, (64, 64), {"patchcore_reduced": 50.0, "end": 50.0})
    least = "  in all about 2 min, the least that is possible; --minutes 1 are allowed"
    assert plan.describe(1.0)[-1] == least
    assert plan.describe(2.0)[-1] == "  in all about 2 min; --minutes 2 are allowed"
