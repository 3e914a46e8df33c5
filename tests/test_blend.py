"""Blends of runs: weights, methods, nested estimates on made-up members."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import draw_members

from defects.config_schema import EnsembleConfig, ThresholdConfig
from defects.evaluation import thresholds
from defects.evaluation.blend import METHODS, Ensemble, compare_methods


def ensemble(sample, **changes):
    names = [f"m{index}" for index in range(sample.scores.shape[1])]
    return Ensemble(names, sample, EnsembleConfig(**changes), ThresholdConfig())


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.lists(st.floats(-1, 3), min_size=2, max_size=3), st.sampled_from(list(METHODS)))
def test_blend_weights_are_shares_and_do_not_depend_on_the_unit_of_a_score(seed, worths, method):
    sample = draw_members(seed, worths, images=120, defects=20)
    moved = sample._replace(scores=sample.scores * 5 + 1)
    plain, other = (ensemble(each, method=method).fit(method) for each in (sample, moved))
    assert (plain.weights >= 0).all() and plain.weights.sum() == pytest.approx(1)
    assert other.weights == pytest.approx(plain.weights)
    assert other(moved.scores) == pytest.approx(plain(sample.scores))


def test_blend_what_is_fitted_to_noise_promises_less_than_it_seems_and_the_mean_stays():
    samples = [draw_members(seed, [1.0] * 5, images=200) for seed in range(5)]  # of equal worth
    tables = [compare_methods(ensemble(sample, method="stack"), list("abcde")) for sample in samples]
    naive, nested, optimism = (
        {name: np.mean([table[name][figure] for table in tables]) for name in ("mean", "stack")}
        for figure in ("naive", "nested", "optimism")
    )
    assert naive["stack"] > naive["mean"] and nested["stack"] < naive["stack"] - 0.02
    assert optimism["stack"] > optimism["mean"]
    made = ensemble(samples[0])
    assert made.is_chosen and made.choose() == "mean"
    assert made.fit("mean").weights.tolist() == [0.2] * 5


def test_blend_another_method_is_chosen_where_the_mean_is_surely_worse():
    sample = draw_members(1, [3.0, 1.5])
    copies = np.repeat(sample.scores[:, 1:], 8, axis=1)  # in the mean eight copies outvote the better member
    made = ensemble(sample._replace(scores=np.column_stack([sample.scores[:, 0], copies])))
    assert made.choose() == "stack"
    weights = made.fit("stack").weights
    assert weights[0] > 5 * weights[1]
    assert ensemble(draw_members(1, [4.0, 0.0]), method="mean").choose() == "mean"


def test_blend_no_fold_has_a_say_in_how_it_is_called():
    """Not even in which method is: the promise includes the choice."""
    sample = draw_members(1, [4.0, 0.0, 0.5])
    before = ensemble(sample).predict_nested()
    held = sample.folds == "1"
    labels = np.where(held, 1 - sample.labels, sample.labels)
    after = ensemble(sample._replace(labels=labels)).predict_nested()
    assert (before[held] == after[held]).all() and (before[~held] != after[~held]).any()


def test_blend_one_member_is_left_as_it_is():
    sample = draw_members(2, [2.0])
    made = ensemble(sample)
    alone = thresholds.nested_predictions(sample.labels, sample.scores[:, 0], sample.folds)
    assert (made.predict_nested() == alone).all() and made.methods == ["mean"]
    assert (made.fit(made.choose())(sample.scores) == sample.scores[:, 0]).all()
