"""Common scales, weights and prior shift by what they promise; their nested estimates on made-up members."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from sklearn.metrics import f1_score

from defects.config import EnsembleConfig, ThresholdConfig
from defects.evaluation import thresholds
from defects.evaluation.blend import METHODS, Ensemble, OutOfFoldScores, compare_methods
from defects.evaluation.metrics import share_weights
from defects.evaluation.scales import MIN_SLOPE, fit_calibration, fit_ranks

FEW = settings(max_examples=30, deadline=None)
finite = st.floats(-1e3, 1e3, width=32)


def members(seed, worths, images=300, defects=30, folds=3):
    """Members whose scores of defects lie `worths` deviations above those of normal images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) < defects).astype(int)
    scores = rng.normal(size=(images, len(worths))) + labels[:, None] * np.array(worths)
    fold = np.zeros(images, dtype=int)
    for label in (0, 1):
        fold[labels == label] = np.arange((labels == label).sum()) % folds
    return OutOfFoldScores(labels, scores, fold.astype(str), np.arange(images))


def ensemble(sample, **changes):
    names = [f"m{index}" for index in range(sample.scores.shape[1])]
    return Ensemble(names, sample, EnsembleConfig(**changes), ThresholdConfig())


@FEW
@given(arrays(int, 12, elements=st.integers(0, 1)), arrays(float, 12, elements=finite), st.floats(0.01, 0.99))
def test_the_threshold_for_another_share_is_the_exact_optimum_of_weighted_images(labels, scores, share):
    assume(labels.any() and not labels.all())
    cut, value = thresholds.best_threshold(labels, scores, share)
    weights = share_weights(labels, share)

    def weighted(at):
        return f1_score(labels, scores >= at, average="macro", sample_weight=weights, zero_division=0)

    assert value == pytest.approx(max(weighted(at) for at in [*scores, np.inf]), abs=1e-9)
    assert value == pytest.approx(weighted(cut), abs=1e-9)


@FEW
@given(st.floats(0.02, 0.95), st.floats(0.03, 0.5), st.floats(1.5, 4), st.integers(0, 99))
def test_em_recovers_the_share_behind_calibrated_scores(share, training_share, distance, seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(20_000) < share
    ratio = distance * rng.normal(distance * labels) - distance**2 / 2  # of two normal distributions
    found = thresholds.estimate_share(ratio + logit(training_share), training_share)
    assert found == pytest.approx(labels.mean(), abs=0.03)


def test_a_shifted_test_set_is_seen_by_both_ways_of_estimating():
    train, test = members(0, [2.5], images=2000, defects=200), members(1, [2.5], images=2000, defects=1000)
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
def test_an_estimate_that_is_not_to_be_trusted_is_called_so(new, labels, expected):
    sample = members(0, [3.0])
    labels = sample.labels if labels is None else labels
    found = thresholds.estimate_prior_shift(labels, sample.scores[:, 0], new)
    assert expected in found["doubt"]
    assert (found["estimated_share"] is not None) == (0 < labels.mean() < 1)


@FEW
@given(arrays(float, 40, elements=finite), arrays(int, 40, elements=st.integers(0, 1)))
def test_ranks_keep_the_order_and_know_nothing_of_the_scale(scores, labels):
    ranks = fit_ranks(labels, scores)
    placed, order = ranks(scores), np.argsort(scores, kind="stable")
    assert np.isfinite(placed).all()
    assert ((np.diff(placed[order]) > 0) == (np.diff(scores[order]) > 0)).all()
    moved = np.cbrt(scores) * 7 - 3
    assume(len(np.unique(moved)) == len(np.unique(scores)))
    assert np.allclose(fit_ranks(labels, moved)(moved), placed)
    assert (ranks(scores[:5]) == placed[:5]).all()  # whatever else is scored


def test_ranks_are_those_among_normal_images_however_many_defects_there_are():
    normal = np.random.default_rng(0).normal(size=500)
    labels = np.repeat([0, 1], [500, 400])
    few = fit_ranks(labels[:510], np.concatenate([normal, np.full(10, 9.0)]))
    many = fit_ranks(labels, np.concatenate([normal, np.full(400, 9.0)]))
    assert few(normal) == pytest.approx(many(normal))
    assert few(np.array([np.median(normal)]))[0] == pytest.approx(0, abs=0.02)


@FEW
@given(st.integers(0, 99), st.floats(-4, 5), st.floats(0.01, 100), st.floats(-50, 50))
def test_a_calibration_is_increasing_and_the_unit_of_a_score_does_not_matter(seed, worth, factor, shift):
    sample = members(seed, [worth])
    scores = sample.scores[:, 0]
    calibration = fit_calibration(sample.labels, scores)
    assert 0 < calibration.slope < 20
    moved = fit_calibration(sample.labels, factor * scores + shift)
    assert moved(factor * scores + shift) == pytest.approx(calibration(scores), abs=1e-3)
    assert expit(calibration(scores)).mean() == pytest.approx(0.1, abs=0.01)
    if worth < -1:  # the wrong way round: no say, rather than turned round
        assert np.ptp(calibration(scores)) < 10 * MIN_SLOPE


def test_calibrated_log_odds_are_those_of_the_truth():
    sample = members(0, [2.0], images=20_000, defects=1000)
    truth = logit(0.05) + 2 * sample.scores[:, 0] - 2
    assert fit_calibration(sample.labels, sample.scores[:, 0])(sample.scores[:, 0]) == pytest.approx(
        truth, abs=0.5
    )


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.lists(st.floats(-1, 3), min_size=2, max_size=3), st.sampled_from(list(METHODS)))
def test_weights_are_shares_and_do_not_depend_on_the_unit_of_a_score(seed, worths, method):
    sample = members(seed, worths, images=120, defects=20)
    moved = sample._replace(scores=sample.scores * 5 + 1)
    plain, other = (ensemble(each, method=method).fit(method) for each in (sample, moved))
    assert (plain.weights >= 0).all() and plain.weights.sum() == pytest.approx(1)
    assert other.weights == pytest.approx(plain.weights)
    assert other(moved.scores) == pytest.approx(plain(sample.scores))


def test_what_is_fitted_to_noise_promises_less_than_it_seems_and_the_mean_stays():
    samples = [members(seed, [1.0] * 5, images=200) for seed in range(5)]  # of equal worth: nothing to gain
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


def test_another_method_is_chosen_where_the_mean_is_surely_worse():
    sample = members(1, [3.0, 1.5])
    copies = np.repeat(sample.scores[:, 1:], 8, axis=1)  # in the mean eight copies outvote the better member
    made = ensemble(sample._replace(scores=np.column_stack([sample.scores[:, 0], copies])))
    assert made.choose() == "stack"
    weights = made.fit("stack").weights
    assert weights[0] > 5 * weights[1]
    assert ensemble(members(1, [4.0, 0.0]), method="mean").choose() == "mean"


def test_no_fold_has_a_say_in_how_it_is_called():
    """Not even in which method is: the promise includes the choice."""
    sample = members(1, [4.0, 0.0, 0.5])
    before = ensemble(sample).predict_nested()
    held = sample.folds == "1"
    labels = np.where(held, 1 - sample.labels, sample.labels)
    after = ensemble(sample._replace(labels=labels)).predict_nested()
    assert (before[held] == after[held]).all() and (before[~held] != after[~held]).any()


def test_one_member_is_left_as_it_is():
    sample = members(2, [2.0])
    made = ensemble(sample)
    alone = thresholds.nested_predictions(sample.labels, sample.scores[:, 0], sample.folds)
    assert (made.predict_nested() == alone).all() and made.methods == ["mean"]
    assert (made.fit(made.choose())(sample.scores) == sample.scores[:, 0]).all()
