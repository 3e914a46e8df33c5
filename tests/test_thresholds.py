"""Thresholds against brute force, and the estimated share of defects."""

from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from members import draw_members
from scipy.special import logit
from sklearn.metrics import f1_score

from defects.config_schema import CostConfig, ThresholdConfig
from defects.evaluation import class_share, metrics, thresholds
from defects.evaluation.metrics import share_weights

RULES = ["macro_f1", "expected_fpr", "expected_cost"]
COSTS = CostConfig(escape=20, false_alarm=1)


def by_fpr(fpr):
    return ThresholdConfig(rule="expected_fpr", fpr=fpr)


@st.composite
def labelled_scores(draw):
    count = draw(st.integers(1, 40))
    labels = draw(arrays(int, count, elements=st.integers(0, 1)))
    values = st.sampled_from([0.1, 0.3, np.nextafter(0.3, 1), 0.5, 1e-300]) | st.floats(-1e6, 1e6)
    return labels, draw(arrays(float, count, elements=values))


def brute_force(labels, scores):
    cuts = [*np.unique(scores), np.inf]
    return max(
        f1_score(labels, scores >= cut, labels=[0, 1], average="macro", zero_division=0) for cut in cuts
    )


@settings(max_examples=200, deadline=None)
@given(labelled_scores())
def test_thresholds_best_threshold_is_the_exact_optimum_and_reaches_what_it_claims(sample):
    labels, scores = sample
    threshold, value = thresholds.best_threshold(labels, scores)
    assert value == pytest.approx(brute_force(labels, scores), abs=1e-12)
    assert metrics.macro_f1(labels, scores >= threshold) == pytest.approx(value, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(labelled_scores())
def test_thresholds_equal_error_brings_both_rates_as_near_as_any_cut_does(sample):
    labels, scores = sample
    assume(labels.any() and not labels.all())
    threshold, rate = thresholds.equal_error(labels, scores)

    def rates(cut):
        return np.mean(scores[labels == 1] < cut), np.mean(scores[labels == 0] >= cut)

    distances = [abs(np.subtract(*rates(cut))) for cut in [*np.unique(scores), np.inf]]
    assert abs(np.subtract(*rates(threshold))) == pytest.approx(min(distances), abs=1e-12)
    assert rate == pytest.approx(np.mean(rates(threshold)))


@settings(max_examples=200, deadline=None)
@given(labelled_scores(), st.sampled_from([0.001, 0.05, 0.07, 0.29, 0.5, 0.999]))
def test_thresholds_expected_fpr_is_kept_and_no_lower_threshold_keeps_it(sample, fpr):
    labels, scores = sample
    normal = scores[labels == 0]
    assume(len(normal))
    threshold = thresholds.choose_threshold(labels, scores, by_fpr(fpr))
    assert np.mean(normal >= threshold) <= fpr
    assert np.mean(normal >= np.nextafter(threshold, -np.inf)) > fpr
    shuffled = np.where(labels == 1, scores - 1, scores)  # defects have no say
    assert thresholds.choose_threshold(labels, shuffled, by_fpr(fpr)) == threshold


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_one_class_alone_leaves_one_rule(rule):
    scores = np.arange(100.0)
    settings = ThresholdConfig(rule=rule, costs=COSTS if rule == "expected_cost" else None)
    assert 94 < thresholds.choose_threshold(np.zeros(100), scores, settings) <= 95
    assert thresholds.choose_threshold(np.ones(100), scores, settings) == 0


def test_thresholds_threshold_sits_in_the_middle_of_the_widest_gap():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert thresholds.best_threshold(labels, scores) == (pytest.approx(0.5), 1.0)


def test_thresholds_nested_prediction_of_a_fold_never_uses_its_own_labels():
    rng = np.random.default_rng(0)
    labels, scores, folds = rng.integers(0, 2, 60), rng.random(60), np.arange(60) % 3
    before = thresholds.nested_predictions(labels, scores, folds)
    labels[folds == 1] = 1 - labels[folds == 1]
    after = thresholds.nested_predictions(labels, scores, folds)
    assert (before[folds == 1] == after[folds == 1]).all()
    assert thresholds.nested_predictions(labels, scores, np.zeros(60)) is None


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_nested_predictions_follow_the_rule(rule):
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 4 == 0).astype(int)
    scores, folds = rng.normal(size=60) + labels, np.arange(60) % 3
    settings = ThresholdConfig(rule=rule, fpr=0.1, costs=COSTS if rule == "expected_cost" else None)
    predicted = thresholds.nested_predictions(labels, scores, folds, settings)
    for fold in range(3):
        held = folds == fold
        threshold = thresholds.choose_threshold(labels[~held], scores[~held], settings)
        assert (predicted[held] == (scores[held] >= threshold)).all()


@settings(max_examples=100, deadline=None)
@given(labelled_scores(), st.floats(0.01, 1000), st.none() | st.floats(0.001, 0.999))
def test_thresholds_no_threshold_has_a_lower_expected_cost(sample, ratio, share):
    labels, scores = sample
    assume(labels.any() and not labels.all())
    costs = CostConfig(escape=ratio, false_alarm=1)
    threshold = thresholds.cost_threshold(labels, scores, costs, share)
    cost = thresholds.measure_cost(labels, scores >= threshold, costs, share)
    others = [
        thresholds.measure_cost(labels, scores >= value, costs, share) for value in [*scores, np.inf, -np.inf]
    ]
    assert cost == pytest.approx(min(others), rel=1e-9, abs=1e-12)
    curve = thresholds.trace_expected_cost(labels, scores, costs, share)
    assert curve.threshold[curve.best] == threshold
    assert curve.cost[curve.best] == pytest.approx(cost, rel=1e-9, abs=1e-12)
    assert np.isfinite(curve.cost).all()


@settings(max_examples=100, deadline=None)
@given(labelled_scores(), st.floats(0.01, 100), st.floats(1.01, 100))
def test_thresholds_dearer_escapes_never_let_more_defects_pass(sample, ratio, factor):
    labels, scores = sample
    assume(labels.any() and not labels.all())
    cheap = CostConfig(escape=ratio, false_alarm=1)
    dear = CostConfig(escape=ratio * factor, false_alarm=1)
    escaped = []
    for costs in (cheap, dear):
        threshold = thresholds.cost_threshold(labels, scores, costs)
        escaped.append((scores[labels == 1] < threshold).sum())
    assert escaped[1] <= escaped[0]


def test_thresholds_expected_cost_depends_on_the_ratio_of_costs_and_on_the_share_alone():
    labels = np.array([0, 0, 0, 1, 0, 1, 1])
    scores = np.arange(7.0)
    by_costs = partial(thresholds.cost_threshold, labels, scores)
    assert by_costs(CostConfig(escape=2, false_alarm=1)) == by_costs(CostConfig(escape=200, false_alarm=100))
    assert by_costs(CostConfig(escape=2, false_alarm=1)) == 2.5  # 1 false alarm at 3/7 x 2 an escape
    assert by_costs(CostConfig(escape=1, false_alarm=2)) == 4.5
    rare = CostConfig(escape=2, false_alarm=1, defect_share=0.01)
    assert by_costs(rare) == by_costs(rare, 0.9) == 4.5


FEW = settings(max_examples=30, deadline=None)


finite = st.floats(-1e3, 1e3, width=32)


@FEW
@given(arrays(int, 12, elements=st.integers(0, 1)), arrays(float, 12, elements=finite), st.floats(0.01, 0.99))
def test_thresholds_the_threshold_for_another_share_is_the_exact_optimum_of_weighted_images(
    labels, scores, share
):
    assume(labels.any() and not labels.all())
    cut, value = thresholds.best_threshold(labels, scores, share)
    weights = share_weights(labels, share)

    def weighted(at):
        return f1_score(labels, scores >= at, average="macro", sample_weight=weights, zero_division=0)

    assert value == pytest.approx(max(weighted(at) for at in [*scores, np.inf]), abs=1e-9)
    assert value == pytest.approx(weighted(cut), abs=1e-9)


@FEW
@given(st.floats(0.02, 0.95), st.floats(0.03, 0.5), st.floats(1.5, 4), st.integers(0, 99))
def test_thresholds_em_recovers_the_share_behind_calibrated_scores(share, training_share, distance, seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(20_000) < share
    ratio = distance * rng.normal(distance * labels) - distance**2 / 2  # of two normal distributions
    found = class_share.estimate_share(ratio + logit(training_share), training_share)
    assert found == pytest.approx(labels.mean(), abs=0.03)


def test_thresholds_a_shifted_test_set_is_seen_by_both_ways_of_estimating():
    train, test = (
        draw_members(0, [2.5], images=2000, defects=200),
        draw_members(1, [2.5], images=2000, defects=1000),
    )
    found = thresholds.estimate_prior_shift(train.labels, train.scores[:, 0], test.scores[:, 0])
    assert found["doubt"] is None and found["estimated_share"] == pytest.approx(0.5, abs=0.06)
    assert found["counted_share"] == pytest.approx(0.5, abs=3 * found["counted_error"])


@pytest.mark.parametrize(
    ("new", "labels", "expected"),
    [
        (np.full(50, -30.0), None, "ran to the edge"),
        # Without defects, but all a little stranger than before: that is no other share.
        (1 + np.random.default_rng(0).normal(size=400), None, "counting says"),
        (np.zeros(9), np.zeros(300, int), "one class only"),
        (np.zeros(9), np.ones(300, int), "one class only"),
    ],
)
def test_thresholds_an_estimate_that_is_not_to_be_trusted_is_called_so(new, labels, expected):
    sample = draw_members(0, [3.0])
    labels = sample.labels if labels is None else labels
    found = thresholds.estimate_prior_shift(labels, sample.scores[:, 0], new)
    assert expected in found["doubt"]
    assert (found["estimated_share"] is not None) == (0 < labels.mean() < 1)
