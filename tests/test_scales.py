"""Scores of folds, runs and test images on one scale."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from members import draw_members
from scipy.special import expit, logit

from defects.evaluation import scales
from defects.evaluation.scales import MIN_SLOPE, fit_calibration, fit_ranks
from defects.messages import UserError


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


def test_scales_averaging_undoes_the_folds_offsets_and_keeps_the_spread_of_one_model():
    oof, test = fold_scores(np.random.default_rng(0))
    held, new, (center, _) = scales.align(oof, test)
    assert held.groupby(oof["fold"]).median().std() < 1e-6
    averaged = scales.average_models(test, new, center)
    assert len(averaged) == 500
    single = np.mean([scales.measure_spread_below(part, center) for _, part in new.groupby(test["fold"])])
    assert scales.measure_spread_below(averaged, center) == pytest.approx(single, rel=1e-6)


def test_scales_scores_of_normal_images_do_not_depend_on_how_many_defects_the_test_set_holds():
    oof, test = fold_scores(np.random.default_rng(3), images=1000, test=2000)
    rare = scales.compute_run_scores(oof, test)[1]
    defects = test[test["image_id"].str.slice(1).astype(int) % 10 == 0]
    copies = [defects.assign(image_id=defects["image_id"] + f"copy{number}") for number in range(8)]
    common = scales.compute_run_scores(oof, pd.concat([test, *copies], ignore_index=True))[1]
    change = (common.reindex(rare.index) - rare).abs()
    assert change.max() < 0.1 * rare.std()


def test_scales_alignment_keeps_the_ranking_within_each_fold_and_ignores_row_order():
    oof, test = fold_scores(np.random.default_rng(1))
    held = scales.align(oof, test)[0]
    for fold in oof["fold"].unique():
        mine = oof["fold"] == fold
        assert (held[mine].rank() == oof.loc[mine, "probability"].rank()).all()
    expected = scales.compute_run_scores(oof, test)[1]
    shuffled = scales.compute_run_scores(oof.sample(frac=1), test.sample(frac=1, random_state=0))[1]
    pd.testing.assert_series_equal(expected.sort_index(), shuffled.sort_index())


@pytest.mark.parametrize("only_full", [True, False])
def test_scales_the_full_fit_is_placed_on_the_folds_scale(only_full):
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


def test_scales_saturated_and_constant_scores_stay_finite():
    oof = pd.DataFrame({"image_id": list("abcd"), "fold": list("0011"), "probability": [0.0, 1.0, 0.5, 0.5]})
    test = pd.DataFrame(
        {"image_id": list("xy") * 2, "fold": list("0011"), "probability": [1.0, 1.0, 0.5, 0.0]}
    )
    assert all(np.isfinite(part).all() for part in scales.compute_run_scores(oof, test))


def test_scales_members_are_joined_by_id_and_those_that_differ_are_named():
    one, other = pd.Series({"a": 0.2, "b": 0.4}), pd.Series({"b": 0.8, "a": 0.1})
    joined = scales.join_scores({"one": one, "other": other})
    assert joined.loc["a"].tolist() == [0.2, 0.1] and joined.loc["b"].tolist() == [0.4, 0.8]
    with pytest.raises(UserError, match="one and other scored different images"):
        scales.join_scores({"one": one, "other": other.rename({"a": "c"})})


FEW = settings(max_examples=30, deadline=None)


finite = st.floats(-1e3, 1e3, width=32)


@FEW
@given(arrays(float, 40, elements=finite), arrays(int, 40, elements=st.integers(0, 1)))
def test_scales_ranks_keep_the_order_and_know_nothing_of_the_scale(scores, labels):
    ranks = fit_ranks(labels, scores)
    placed, order = ranks(scores), np.argsort(scores, kind="stable")
    assert np.isfinite(placed).all()
    assert ((np.diff(placed[order]) > 0) == (np.diff(scores[order]) > 0)).all()
    moved = np.cbrt(scores) * 7 - 3
    assume(len(np.unique(moved)) == len(np.unique(scores)))
    assert np.allclose(fit_ranks(labels, moved)(moved), placed)
    assert (ranks(scores[:5]) == placed[:5]).all()  # whatever else is scored


def test_scales_ranks_are_those_among_normal_images_however_many_defects_there_are():
    normal = np.random.default_rng(0).normal(size=500)
    labels = np.repeat([0, 1], [500, 400])
    few = fit_ranks(labels[:510], np.concatenate([normal, np.full(10, 9.0)]))
    many = fit_ranks(labels, np.concatenate([normal, np.full(400, 9.0)]))
    assert few(normal) == pytest.approx(many(normal))
    assert few(np.array([np.median(normal)]))[0] == pytest.approx(0, abs=0.02)


@FEW
@given(st.integers(0, 99), st.floats(-4, 5), st.floats(0.01, 100), st.floats(-50, 50))
def test_scales_a_calibration_is_increasing_and_the_unit_of_a_score_does_not_matter(
    seed, worth, factor, shift
):
    sample = draw_members(seed, [worth])
    scores = sample.scores[:, 0]
    calibration = fit_calibration(sample.labels, scores)
    assert 0 < calibration.slope < 20
    moved = fit_calibration(sample.labels, factor * scores + shift)
    assert moved(factor * scores + shift) == pytest.approx(calibration(scores), abs=1e-3)
    assert expit(calibration(scores)).mean() == pytest.approx(0.1, abs=0.01)
    if worth < -1:  # the wrong way round: no say, rather than turned round
        assert np.ptp(calibration(scores)) < 10 * MIN_SLOPE


def test_scales_calibrated_log_odds_are_those_of_the_truth():
    sample = draw_members(0, [2.0], images=20_000, defects=1000)
    truth = logit(0.05) + 2 * sample.scores[:, 0] - 2
    assert fit_calibration(sample.labels, sample.scores[:, 0])(sample.scores[:, 0]) == pytest.approx(
        truth, abs=0.5
    )
