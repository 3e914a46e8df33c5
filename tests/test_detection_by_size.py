"""Probability of detection by size: against closed forms and simulations, and where nothing can be said."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import write_png
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit

from defects.evaluation.detection_by_size import (
    LIKELIHOOD_RATIO,
    PenalisedLikelihood,
    fit_detection_curve,
    fit_detection_curves,
    measure_defect_sizes,
    measure_largest,
)


def draw_defects(images, seed, intercept=0.0, slope=3.0):
    """Sizes around 20, and whether they are detected, by log-odds that are `intercept` at 20."""
    random = np.random.default_rng(seed)
    log_sizes = random.normal(np.log(20), 0.8, images)
    probability = expit(intercept + slope * (log_sizes - np.log(20)))
    return np.exp(log_sizes), random.random(images) < probability


def fit(sizes, detected, groups=None):
    groups = np.arange(len(sizes)) if groups is None else groups
    return fit_detection_curve(np.asarray(sizes, float), np.asarray(detected), groups)


@pytest.mark.parametrize("hits", [(3, 9), (0, 10), (10, 10)])
def test_curve_of_two_sizes_adds_half_a_hit_and_half_a_miss_to_either(hits):
    """Closed form of Firth's estimate where each size has a parameter of its own."""
    x = np.repeat([0.0, 1.0], 10)
    detected = np.concatenate([np.arange(10) < hits[0], np.arange(10) < hits[1]])
    intercept, slope = PenalisedLikelihood(x, detected, 1.0).maximise()
    assert expit([intercept, intercept + slope]) == pytest.approx((np.array(hits) + 0.5) / 11, abs=1e-5)


def test_curve_of_many_defects_has_the_sizes_it_was_drawn_with():
    sizes, detected = draw_defects(1500, 0)
    curve = fit(sizes, detected)
    true_a90 = 20 * np.exp(logit(0.9) / 3)
    assert curve.a50 == pytest.approx(20, rel=0.08)
    assert curve.a90 == pytest.approx(true_a90, rel=0.1)
    assert true_a90 < curve.a90_95 < 1.25 * true_a90
    assert curve.reasons == {}


def test_band_is_that_of_the_profile_likelihood():
    sizes, detected = draw_defects(40, 1)
    curve = fit(sizes, detected)
    likelihood = PenalisedLikelihood(np.log(sizes), detected, 1.0)
    highest = likelihood(likelihood.maximise())
    log_size = np.log(30.0)

    def excess(log_odds):
        """Of the likelihood ratio of lines through these log-odds at 30, over the allowed one."""

        def loss(slope):
            return -likelihood(np.array([log_odds - slope * log_size, slope]))

        best = minimize_scalar(loss, bracket=(1, 3)).fun
        return 2 * (highest + best) - LIKELIHOOD_RATIO

    at_30 = logit(curve.predict(np.array([30.0]))[0])
    expected = expit([brentq(excess, at_30 - 8, at_30), brentq(excess, at_30, at_30 + 8)])
    assert np.concatenate(curve.bound(np.array([30.0]))) == pytest.approx(expected, abs=2e-3)


def test_lower_bound_at_a90_95_is_nine_in_ten():
    curve = fit(*draw_defects(100, 2))
    assert curve.bound(np.array([curve.a90_95]))[0] == pytest.approx(0.9, abs=1e-6)
    assert curve.predict(np.array([curve.a90])) == pytest.approx(0.9, abs=1e-6)


def test_a90_95_lies_above_the_true_size_in_most_simulations():
    true_a90 = 20 * np.exp(logit(0.9) / 3)
    below = 0
    for seed in range(40):
        a90_95 = fit(*draw_defects(60, seed)).a90_95
        below += a90_95 is not None and a90_95 < true_a90
    assert below <= 4


def test_separated_sizes_have_a_finite_curve():
    sizes = np.geomspace(2, 200, 40)
    curve = fit(sizes, sizes > 20)
    assert np.isfinite(curve.log_odds).all()
    assert 15 < curve.a50 < 25 < curve.a90 < curve.a90_95 < 200


def test_siblings_widen_the_band():
    sizes, detected = draw_defects(60, 3)
    alone = fit(sizes, detected)
    with_copies = fit(np.repeat(sizes, 3), np.repeat(detected, 3), np.repeat(np.arange(60), 3))
    as_others = fit(np.repeat(sizes, 3), np.repeat(detected, 3))
    assert with_copies.independent_images == 60
    assert with_copies.a90_95 == pytest.approx(alone.a90_95, rel=1e-3)
    assert as_others.a90_95 < alone.a90_95


@pytest.mark.parametrize(
    ("sizes", "detected", "text"),
    [
        ([], [], "no defects out of fold"),
        ([np.nan] * 20, [True] * 20, "no defect has a mask"),
        ([1, 2, 3, 4], [0, 1, 0, 1], "4 defects with masks are worth 4.0 independent images; 8 are needed"),
        (np.arange(1, 21), np.ones(20), "all 20 defects with masks are detected"),
        (np.arange(1, 21), np.zeros(20), "none of 20 defects with masks is detected"),
        ([5.0] * 20, [0, 1] * 10, "all defects have the same size"),
    ],
)
def test_curve_that_cannot_be_fitted_says_why(sizes, detected, text):
    curve = fit(sizes, np.asarray(detected, bool))
    assert text in curve.reasons["curve"]
    assert curve.log_odds is None
    assert (curve.a50, curve.a90, curve.a90_95) == (None, None, None)


def test_sizes_are_not_said_where_larger_defects_are_not_detected_more_often():
    sizes = np.geomspace(2, 200, 40)
    curve = fit(sizes, sizes < 20)
    assert (curve.a50, curve.a90, curve.a90_95) == (None, None, None)
    assert "not detected more often" in curve.reasons["a90"]


def test_sizes_beyond_the_data_are_not_said():
    sizes, detected = draw_defects(60, 4, intercept=-2.5)
    curve = fit(np.minimum(sizes, 40), detected)
    assert curve.a90 is None
    assert "beyond the largest defect, 40 px" in curve.reasons["a90"]


def test_sizes_below_the_smallest_defect_are_said_to_be_that_of_it():
    sizes, detected = draw_defects(100, 8, intercept=3.0)
    curve = fit(np.maximum(sizes, 15), detected)
    assert curve.a50 == pytest.approx(15)
    assert "does not reach further down" in curve.reasons["a50"]


def test_weak_effect_of_size_gives_no_bound():
    sizes, detected = draw_defects(40, 5, intercept=1.0, slope=0.4)
    curve = fit(sizes, detected)
    assert curve.a90_95 is None
    assert curve.reasons["a90_95"]


def test_curves_in_millimetres():
    sizes, detected = draw_defects(100, 6)
    table = pd.DataFrame({"longest_side": sizes, "area": sizes**2})
    in_pixels = fit_detection_curves(table, detected, np.arange(100))
    in_millimetres = fit_detection_curves(table, detected, np.arange(100), 0.05)
    assert [curve.unit for curve in in_pixels] == ["px", "px²"]
    assert [curve.unit for curve in in_millimetres] == ["mm", "mm²"]
    assert in_millimetres[0].a90 == pytest.approx(0.05 * in_pixels[0].a90, rel=1e-4)
    assert in_millimetres[1].a90_95 == pytest.approx(0.05**2 * in_pixels[1].a90_95, rel=1e-4)


def test_json_of_a_curve_holds_plain_values():
    values = fit(*draw_defects(60, 7)).to_json()
    assert "border" not in values
    assert values["images"] == 60


def test_size_of_an_image_is_that_of_its_largest_defect():
    mask = np.zeros((60, 80), np.uint8)
    mask[5:9, 5:9] = 255  # 16 pixels
    mask[20, 10:31] = 255  # 21 pixels in a row
    mask[40:46, 40:46] = 255  # 36 pixels
    assert measure_largest(mask) == (21.0, 36.0)


def test_longest_side_of_an_oblique_scratch_is_its_length():
    mask = np.zeros((100, 100), np.uint8)
    cv2.line(mask, (20, 20), (70, 70), 255)
    longest_side, area = measure_largest(mask)
    assert longest_side == pytest.approx(50 * 2**0.5 + 1, abs=0.5)
    assert area == 51


def test_longest_side_of_one_pixel_is_one():
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = 1
    assert measure_largest(mask) == (1.0, 1.0)


def test_sizes_are_read_from_masks_and_unknown_without_one(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[4:8, 10:20] = 255
    write_png(tmp_path / "mask.png", mask)
    rows = pd.DataFrame({"mask_path": ["mask.png", ""], "height": 20, "width": 30}, index=["a", "b"])
    sizes = measure_defect_sizes(rows, tmp_path)
    assert sizes.loc["a"].tolist() == [10.0, 40.0]
    assert sizes.loc["b"].isna().all()
