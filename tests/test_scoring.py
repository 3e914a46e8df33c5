"""Thresholds, estimates and blending, against brute force and by the invariances they promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.metrics import f1_score

from defects.errors import UserError
from defects.scoring import blending, thresholds
from defects.scoring.estimate import estimate
from defects.scoring.outcome import outcome, share_weights


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
def test_best_threshold_is_the_exact_optimum_and_reaches_what_it_claims(sample):
    labels, scores = sample
    threshold, value = thresholds.best_threshold(labels, scores)
    assert value == pytest.approx(brute_force(labels, scores), abs=1e-12)
    assert thresholds.macro_f1(labels, scores >= threshold) == pytest.approx(value, abs=1e-12)


def test_threshold_sits_in_the_middle_of_the_widest_gap():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert thresholds.best_threshold(labels, scores) == (pytest.approx(0.5), 1.0)


def test_nested_prediction_of_a_fold_never_uses_its_own_labels():
    rng = np.random.default_rng(0)
    labels, scores, folds = rng.integers(0, 2, 60), rng.random(60), np.arange(60) % 3
    before = thresholds.nested_predictions(labels, scores, folds)
    labels[folds == 1] = 1 - labels[folds == 1]
    after = thresholds.nested_predictions(labels, scores, folds)
    assert (before[folds == 1] == after[folds == 1]).all()
    assert thresholds.nested_predictions(labels, scores, np.zeros(60)) is None


def test_bootstrap_interval_agrees_with_drawing_groups_one_by_one():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 2, 200), np.arange(200) // 2
    predicted = np.where(rng.random(200) < 0.85, labels, 1 - labels)
    low, high = thresholds.bootstrap_interval(labels, predicted, groups)
    drawn = []
    for _ in range(2000):
        index = np.concatenate([[2 * group, 2 * group + 1] for group in rng.integers(0, 100, 100)])
        drawn.append(thresholds._macro_f1_of_counts(*confusion(labels[index], predicted[index])))
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.01)
    assert (low, high) == thresholds.bootstrap_interval(labels, predicted, groups)


def confusion(labels, predicted):
    return [np.sum((labels == a) & (predicted == b)) for a, b in ((1, 1), (0, 1), (1, 0), (0, 0))]


def oof_table(labels, probability, folds):
    table = pd.DataFrame({"label": labels, "probability": probability, "fold": folds})
    return table.assign(image_id=[f"i{row}" for row in range(len(table))], group=range(len(table)))


def test_estimate_of_a_perfect_and_of_a_single_fold():
    table = oof_table([0, 0, 0, 1] * 10, [0.1, 0.2, 0.3, 0.9] * 10, ["0", "1"] * 20)
    found = estimate(table)
    assert found["macro_f1"] == found["nested_macro_f1"] == found["auroc"] == 1.0
    assert found["confusion_matrix"] == [[30, 0], [0, 10]] and 0.3 < found["threshold"] < 0.9
    assert estimate(table.assign(fold="0"))["nested_macro_f1"] is None


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="1 out-of-fold scores are not finite"):
        estimate(oof_table([0, 1], [0.5, np.nan], ["0", "1"]))


def fold_scores(rng, folds=5, images=400, test=500, shared=0.6):
    """OOF and test tables of models that differ in offset and scale."""
    signal = np.where(np.arange(images) % 10 == 0, 3.0, 0.0) + rng.normal(size=images) * shared**0.5
    fresh = np.where(np.arange(test) % 10 == 0, 3.0, 0.0) + rng.normal(size=test) * shared**0.5
    oof, new = [], []
    for fold in range(folds):
        offset, scale = rng.normal() * 2, np.exp(rng.normal() * 0.5)
        mine = np.arange(images)[np.arange(images) % folds == fold]
        for table, values, rows in ((oof, signal[mine], mine), (new, fresh, np.arange(test))):
            noisy = offset + scale * (values + rng.normal(size=len(values)) * (1 - shared) ** 0.5)
            table.append(
                pd.DataFrame(
                    {"image_id": [f"i{row}" for row in rows], "fold": str(fold), "probability": expit(noisy)}
                )
            )
    return pd.concat(oof, ignore_index=True), pd.concat(new, ignore_index=True)


def test_averaging_undoes_the_folds_offsets_and_keeps_the_spread_of_one_model():
    oof, test = fold_scores(np.random.default_rng(0))
    held, new = blending.align(oof, test)
    assert held.groupby(oof["fold"]).median().std() < 1e-6
    averaged = blending.average(test, new)
    assert len(averaged) == 500
    single = new.groupby(test["fold"]).apply(lambda part: blending._scale(part)[1]).mean()
    assert blending._scale(averaged)[1] == pytest.approx(single, rel=1e-6)


def test_alignment_keeps_the_ranking_within_each_fold_and_ignores_row_order():
    oof, test = fold_scores(np.random.default_rng(1))
    held, _ = blending.align(oof, test)
    for fold in oof["fold"].unique():
        mine = oof["fold"] == fold
        assert (held[mine].rank() == oof.loc[mine, "probability"].rank()).all()
    expected = blending.experiment_probabilities(oof, test)[1]
    shuffled = blending.experiment_probabilities(oof.sample(frac=1), test.sample(frac=1, random_state=0))[1]
    pd.testing.assert_series_equal(expected.sort_index(), shuffled.sort_index())


@pytest.mark.parametrize("only_full", [True, False])
def test_the_full_fit_is_placed_on_the_folds_scale(only_full):
    oof, test = fold_scores(np.random.default_rng(2))
    full = test[test["fold"] == "0"].assign(fold="full")
    test = full if only_full else pd.concat([test, full], ignore_index=True)
    held, new = blending.align(oof, test)
    placed = new[(test["fold"] == "full").to_numpy()]
    target = (
        held if only_full else blending.average(test[test["fold"] != "full"], new[test["fold"] != "full"])
    )
    # (median, spread) of all held-out scores differ a little from the folds' common one.
    assert blending._scale(placed) == pytest.approx(blending._scale(target), rel=0.1, abs=0.1)


def test_saturated_and_constant_scores_stay_finite():
    oof = pd.DataFrame({"image_id": list("abcd"), "fold": list("0011"), "probability": [0.0, 1.0, 0.5, 0.5]})
    test = pd.DataFrame(
        {"image_id": list("xy") * 2, "fold": list("0011"), "probability": [1.0, 1.0, 0.5, 0.0]}
    )
    assert all(np.isfinite(part).all() for part in blending.experiment_probabilities(oof, test))


def test_blend_joins_by_id_and_names_experiments_that_differ():
    one = pd.Series({"a": 0.2, "b": 0.4})
    other = pd.Series({"b": 0.8, "a": 0.0})
    assert blending.blend({"one": one, "other": other}).to_dict() == pytest.approx({"a": 0.1, "b": 0.6})
    with pytest.raises(UserError, match="one and other scored different images"):
        blending.blend({"one": one, "other": other.rename({"a": "c"})})


def test_share_weights_turn_the_test_into_one_with_the_training_share():
    labels = np.array([1] * 47 + [0] * 53)
    weights = share_weights(labels, 0.05)
    assert weights.mean() == pytest.approx(1) and weights[labels == 1].sum() == pytest.approx(5)
    table = pd.DataFrame({"label": labels, "answer": labels, "probability": labels * 0.5})
    found = outcome(table, 0.05)
    assert found["macro_f1"] == found["macro_f1_at_training_share"] == found["auroc"] == 1.0
    wrong = table.assign(answer=np.where(np.arange(100) < 60, 1, 0))  # thirteen normal images rejected
    assert outcome(wrong, 0.05)["macro_f1_at_training_share"] < outcome(wrong, 0.05)["macro_f1"]
