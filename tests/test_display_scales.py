"""The scale of scores for people: 50 is the threshold, both sides have room, decisions are kept."""

import numpy as np
import pytest
from scipy.special import expit

from defects.evaluation.display_scales import (
    AT_THRESHOLD,
    compute_defect_scores,
    compute_log_odds,
    format_defect_score,
    format_probability,
    score_probabilities,
)

THRESHOLDS = [0.0, 1e-300, 1e-9, 0.03, 0.5, 0.7, 1 - 1e-9, np.nextafter(1.0, 0.0), 1.0]


def test_defect_score_scores_rise_with_the_log_odds():
    scores = compute_defect_scores(np.linspace(-60, 60, 2001), 3.0)
    assert (np.diff(scores) > 0).all()
    assert scores[0] > 0
    assert scores[-1] < 100


def test_defect_score_scores_are_what_they_are_said_to_be():
    decades = np.array([-2, -1, 0, 1, 2])
    scores = compute_defect_scores(1.5 + decades * np.log(10), 1.5)
    assert scores == pytest.approx([50 / 3, 25, 50, 75, 250 / 3])


def test_defect_score_scores_take_a_threshold_of_each_image():
    scores = compute_defect_scores(np.array([1.0, 1.0]), np.array([1.0, 1.0 + np.log(10)]))
    assert scores == pytest.approx([50, 25])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_defect_score_a_score_is_at_least_50_exactly_where_the_probability_reaches_the_threshold(threshold):
    near = [np.nextafter(threshold, end) for end in (0, 1)] + [threshold]
    probabilities = np.array([0, 1e-320, 1e-8, 0.2, 0.5, 0.9, 1 - 1e-12, 1, *near])
    scores = score_probabilities(probabilities, threshold)
    assert np.isfinite(scores).all()
    assert ((scores > 0) & (scores < 100)).all()
    np.testing.assert_array_equal(scores >= AT_THRESHOLD, probabilities >= threshold)
    assert scores[-1] == pytest.approx(AT_THRESHOLD)


def test_defect_score_scores_keep_the_decision_of_log_odds_next_to_the_threshold():
    for threshold in (0.1, -7.3, 1e5):
        beside = np.array([np.nextafter(threshold, -np.inf), threshold, np.nextafter(threshold, np.inf)])
        scores = compute_defect_scores(beside, threshold)
        assert (scores >= AT_THRESHOLD).tolist() == [False, True, True]


def test_defect_score_scores_rise_with_the_probability():
    probabilities = np.concatenate([[0], np.logspace(-15, -1, 40), np.linspace(0.11, 0.9, 40), [1]])
    for threshold in (1e-4, 0.5, 0.999):
        assert (np.diff(score_probabilities(probabilities, threshold)) > 0).all()


def test_defect_score_scores_of_probabilities_that_crowd_at_1_lie_apart():
    """As of a detector whose normal images are all above 0.9999, in float32."""
    probabilities = expit(np.array([10.0, 11, 12, 13, 14])).astype(np.float32)
    scores = score_probabilities(probabilities, float(expit(12.0)))
    assert scores == pytest.approx(compute_defect_scores(np.arange(10, 15), 12.0), abs=1)
    assert (np.diff(scores) > 5).all()


def test_defect_score_log_odds_are_finite_and_the_inverse_of_probabilities():
    assert compute_log_odds(expit(np.array([-30.0, -2, 0, 5]))) == pytest.approx([-30, -2, 0, 5])
    assert np.isfinite(compute_log_odds([0.0, 1.0])).all()


@pytest.mark.parametrize(
    ("score", "threshold", "text"),
    [
        (49.99, 50, "49.9"),
        (50.0, 50, "50.0"),
        (73.17, 73.2, "73.1"),
        (73.2, 73.2, "73.2"),
        (12.34, 50, "12.3"),
    ],
)
def test_defect_score_a_written_score_does_not_read_as_the_other_decision(score, threshold, text):
    assert format_defect_score(score, threshold) == text


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.5, "0.500"),
        (0.9991, "0.9991"),
        (1 - 2e-5, "0.99998"),
        (2.3e-6, "0.000002"),
        (1e-12, "below 0.00000001"),
        (1 - 1e-12, "above 0.99999999"),
        (0, "0"),
        (1, "1"),
    ],
)
def test_defect_score_a_written_probability_is_told_from_0_and_1(probability, text):
    assert format_probability(probability) == text
