"""What choosing the threshold takes off the images that bounds of error rates rest on."""

import numpy as np

from defects.config_schema import ThresholdConfig
from defects.evaluation.threshold_uncertainty import NO_INFLATION, measure_inflation

SETTINGS = ThresholdConfig()


def measure(labels, scores, groups=None, settings=SETTINGS):
    folds = (np.arange(len(labels)) % 4).astype(str)
    groups = np.arange(len(labels)) if groups is None else groups
    return measure_inflation(labels, scores, folds, groups, settings)


def draw_scores(defects=40, normal=400, distance=2.5, seed=0):
    labels = np.repeat([1, 0], [defects, normal])
    return labels, np.random.default_rng(seed).normal(size=len(labels)) + distance * labels


def test_inflation_of_separated_scores_is_none():
    labels, _ = draw_scores()
    assert measure(labels, 10.0 * labels + np.linspace(0, 1, len(labels))) == NO_INFLATION


def test_inflation_of_one_class_is_none():
    scores = np.random.default_rng(1).normal(size=60)
    assert measure(np.zeros(60, int), scores) == NO_INFLATION
    assert measure(np.ones(60, int), scores) == NO_INFLATION


def test_inflation_of_overlapping_scores_is_above_one():
    inflation = measure(*draw_scores())
    assert 1.2 < inflation.false_alarm < 6
    assert 1 <= inflation.escape < 6


def test_inflation_is_the_same_again():
    assert measure(*draw_scores()) == measure(*draw_scores())


def test_inflation_of_few_groups_is_that_of_what_can_be_halved():
    labels, scores = draw_scores(4, 40)
    groups = np.where(labels == 1, -1, np.arange(44))  # all defects are one object: no half has both classes
    assert measure(labels, scores, groups) == NO_INFLATION
