"""Thresholds, estimates and blending, against brute force and by the invariances they promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.metrics import f1_score

from defects.evaluation import metrics, scales, thresholds
from defects.evaluation.estimate import estimate
from defects.evaluation.outcome import outcome
from defects.messages import UserError


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
    assert metrics.macro_f1(labels, scores >= threshold) == pytest.approx(value, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(labelled_scores())
def test_equal_error_brings_both_rates_as_near_as_any_cut_does(sample):
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
def test_expected_fpr_is_kept_and_no_lower_threshold_keeps_it(sample, fpr):
    labels, scores = sample
    normal = scores[labels == 0]
    assume(len(normal))
    threshold = thresholds.choose_threshold(labels, scores, "expected_fpr", fpr)
    assert np.mean(normal >= threshold) <= fpr
    assert np.mean(normal >= np.nextafter(threshold, -np.inf)) > fpr
    shuffled = np.where(labels == 1, scores - 1, scores)  # defects have no say
    assert thresholds.choose_threshold(labels, shuffled, "expected_fpr", fpr) == threshold


@pytest.mark.parametrize("rule", ["macro_f1", "expected_fpr"])
def test_one_class_alone_leaves_one_rule(rule):
    scores = np.arange(100.0)
    assert 94 < thresholds.choose_threshold(np.zeros(100), scores, rule, 0.05) <= 95
    assert thresholds.choose_threshold(np.ones(100), scores, rule, 0.05) == 0


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


@pytest.mark.parametrize("rule", ["macro_f1", "expected_fpr"])
def test_nested_predictions_follow_the_rule(rule):
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % 4 == 0).astype(int)
    scores, folds = rng.normal(size=60) + labels, np.arange(60) % 3
    predicted = thresholds.nested_predictions(labels, scores, folds, rule, 0.1)
    for fold in range(3):
        held = folds == fold
        threshold = thresholds.choose_threshold(labels[~held], scores[~held], rule, 0.1)
        assert (predicted[held] == (scores[held] >= threshold)).all()


def test_bootstrap_agrees_with_drawing_groups_one_by_one():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 2, 200), np.arange(200) // 2
    predicted = np.where(rng.random(200) < 0.85, labels, 1 - labels)
    found = np.quantile(metrics.bootstrap(labels, predicted[None], groups), [0.05, 0.95])
    drawn = []
    for _ in range(2000):
        index = np.concatenate([[2 * group, 2 * group + 1] for group in rng.integers(0, 100, 100)])
        drawn.append(metrics.macro_f1_of_counts(*confusion(labels[index], predicted[index])))
    assert found == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.01)


def confusion(labels, predicted):
    return [np.sum((labels == a) & (predicted == b)) for a, b in ((1, 1), (0, 1), (1, 0), (0, 0))]


def oof_table(labels, scores, folds):
    table = pd.DataFrame({"label": labels, "score": scores, "fold": folds})
    return table.assign(image_id=[f"i{row}" for row in range(len(table))], group=range(len(table)))


def test_estimate_of_a_perfect_and_of_a_single_fold():
    table = oof_table([0, 0, 0, 1] * 10, [-2.0, -1.0, -0.5, 3.0] * 10, ["0", "1"] * 20)
    found = estimate(table)
    assert found["macro_f1"] == found["nested_macro_f1"] == found["auroc"] == 1.0
    assert found["confusion_matrix"] == [[30, 0], [0, 10]] and -0.5 < found["score_threshold"] < 3
    assert found["threshold"] == pytest.approx(expit(found["score_threshold"]))
    single = estimate(table.assign(fold="0"))  # nothing is promised by the images a threshold was fitted on
    assert single["nested_macro_f1"] is None and single["interval_90"] is None


def test_estimate_by_another_rule_tells_the_errors_of_its_threshold():
    rng = np.random.default_rng(2)
    labels = (np.arange(400) % 8 == 0).astype(int)
    table = oof_table(labels, rng.normal(size=400) + 2 * labels, (np.arange(400) % 4).astype(str))
    plain, tenth = estimate(table), estimate(table, "expected_fpr", 0.1)
    assert plain["equal_error_rate"] == tenth["equal_error_rate"]
    is_passed = table["score"] < tenth["score_threshold"]
    assert tenth["false_acceptance"] == is_passed[labels == 1].mean()
    assert tenth["false_rejection"] == 0.1 and abs(tenth["nested_false_rejection"] - 0.1) < 0.03
    assert plain["macro_f1"] >= tenth["macro_f1"]


@pytest.mark.parametrize("folds", [["0", "1"], ["0"]])
def test_without_defects_no_macro_f1_is_estimated(folds):
    table = oof_table([0] * 40, np.arange(40.0), folds * (40 // len(folds)))
    found = estimate(table, "macro_f1", 0.05)
    assert found["rule"] == "expected_fpr" and found["false_rejection"] == 0.05
    assert {found[name] for name in ("macro_f1", "nested_macro_f1", "interval_90", "auroc")} == {None}
    assert (found["nested_false_rejection"] is not None) == (len(folds) == 2)


def test_an_outcome_without_training_defects_has_no_macro_f1_at_their_share():
    table = pd.DataFrame({"label": [0, 1], "answer": [0, 1], "score": [0.1, 0.9]})
    assert outcome(table, 0.0)["macro_f1_at_training_share"] is None


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
    held, new, (center, _) = scales.align(oof, test)
    assert held.groupby(oof["fold"]).median().std() < 1e-6
    averaged = scales.average_models(test, new, center)
    assert len(averaged) == 500
    single = np.mean([scales.measure_spread_below(part, center) for _, part in new.groupby(test["fold"])])
    assert scales.measure_spread_below(averaged, center) == pytest.approx(single, rel=1e-6)


def test_scores_of_normal_images_do_not_depend_on_how_many_defects_the_test_set_holds():
    oof, test = fold_scores(np.random.default_rng(3), images=1000, test=2000)
    rare = scales.compute_run_scores(oof, test)[1]
    defects = test[test["image_id"].str.slice(1).astype(int) % 10 == 0]
    copies = [defects.assign(image_id=defects["image_id"] + f"copy{number}") for number in range(8)]
    common = scales.compute_run_scores(oof, pd.concat([test, *copies], ignore_index=True))[1]
    change = (common.reindex(rare.index) - rare).abs()
    assert change.max() < 0.1 * rare.std()


def test_alignment_keeps_the_ranking_within_each_fold_and_ignores_row_order():
    oof, test = fold_scores(np.random.default_rng(1))
    held = scales.align(oof, test)[0]
    for fold in oof["fold"].unique():
        mine = oof["fold"] == fold
        assert (held[mine].rank() == oof.loc[mine, "probability"].rank()).all()
    expected = scales.compute_run_scores(oof, test)[1]
    shuffled = scales.compute_run_scores(oof.sample(frac=1), test.sample(frac=1, random_state=0))[1]
    pd.testing.assert_series_equal(expected.sort_index(), shuffled.sort_index())


@pytest.mark.parametrize("only_full", [True, False])
def test_the_full_fit_is_placed_on_the_folds_scale(only_full):
    oof, test = fold_scores(np.random.default_rng(2))
    full = test[test["fold"] == "0"].assign(fold="full")
    test = full if only_full else pd.concat([test, full], ignore_index=True)
    _, new, common = scales.align(oof, test)
    folds = test["fold"] != "full"
    target = (
        common
        if only_full
        else scales.measure_scale(scales.average_models(test[folds], new[folds], common[0]))
    )
    assert scales.measure_scale(new[~folds]) == pytest.approx(target)


def test_saturated_and_constant_scores_stay_finite():
    oof = pd.DataFrame({"image_id": list("abcd"), "fold": list("0011"), "probability": [0.0, 1.0, 0.5, 0.5]})
    test = pd.DataFrame(
        {"image_id": list("xy") * 2, "fold": list("0011"), "probability": [1.0, 1.0, 0.5, 0.0]}
    )
    assert all(np.isfinite(part).all() for part in scales.compute_run_scores(oof, test))


def test_members_are_joined_by_id_and_those_that_differ_are_named():
    one, other = pd.Series({"a": 0.2, "b": 0.4}), pd.Series({"b": 0.8, "a": 0.1})
    joined = scales.join_scores({"one": one, "other": other})
    assert joined.loc["a"].tolist() == [0.2, 0.1] and joined.loc["b"].tolist() == [0.4, 0.8]
    with pytest.raises(UserError, match="one and other scored different images"):
        scales.join_scores({"one": one, "other": other.rename({"a": "c"})})


def test_share_weights_turn_the_test_into_one_with_the_training_share():
    labels = np.array([1] * 47 + [0] * 53)
    weights = metrics.share_weights(labels, 0.05)
    assert weights.mean() == pytest.approx(1) and weights[labels == 1].sum() == pytest.approx(5)
    table = pd.DataFrame({"label": labels, "answer": labels, "score": labels * 0.5})
    found = outcome(table, 0.05)
    assert found["macro_f1"] == found["macro_f1_at_training_share"] == found["auroc"] == 1.0
    wrong = table.assign(answer=np.where(np.arange(100) < 60, 1, 0))  # thirteen normal images rejected
    assert outcome(wrong, 0.05)["macro_f1_at_training_share"] < outcome(wrong, 0.05)["macro_f1"]
