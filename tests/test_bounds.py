"""Exact binomial bounds against scipy and published tables; numbers of images that support a claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from defects.evaluation.bounds import bound_rate, count_needed, tabulate_needed

FEW = settings(max_examples=50, deadline=None)


@st.composite
def counts(draw):
    images = draw(st.integers(1, 400))
    return draw(st.integers(0, images)), images


@pytest.mark.parametrize(
    ("errors", "images", "percent"),
    # The rule of three (Hanley & Lippman-Hand 1983) and tables of one-sided 95 % limits.
    [(0, 30, 9.5), (0, 59, 5.0), (0, 149, 2.0), (0, 299, 1.0), (0, 10, 25.9), (1, 10, 39.4), (2, 20, 28.3)],
)
def test_bound_rate_is_that_of_published_tables(errors, images, percent):
    assert 100 * bound_rate(errors, images, 0.95) == pytest.approx(percent, abs=0.05)


@FEW
@given(counts(), st.sampled_from([0.6, 0.9, 0.95, 0.99]))
def test_bound_rate_is_that_of_scipy(count, confidence):
    errors, images = count
    exact = binomtest(errors, images, alternative="less").proportion_ci(confidence, "exact").high
    assert bound_rate(errors, images, confidence) == pytest.approx(exact, abs=1e-9)


@FEW
@given(st.floats(0, 50), st.floats(0.1, 500), st.floats(0, 10), st.floats(0, 0.4))
def test_bound_rate_of_fractions_lies_above_the_rate_and_falls_with_more_images(errors, normal, more, margin):
    images = errors + normal
    upper = bound_rate(errors, images, 0.95)
    assert errors / images <= upper <= 1
    assert bound_rate(errors, images + more, 0.95) <= upper + 1e-12
    assert bound_rate(errors + more, images + more, 0.95) >= upper - 1e-12
    assert bound_rate(errors, images, 0.55 + margin) <= upper + 1e-12


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_bound_rate_holds_as_often_as_its_confidence_says(rate):
    images = 80
    errors = np.arange(images + 1)
    holds = np.array([bound_rate(count, images, 0.95) >= rate for count in errors])
    assert binom.pmf(errors, images, rate)[holds].sum() >= 0.95


def test_bound_rate_at_the_edges():
    assert bound_rate(0, 0, 0.95) is None
    assert bound_rate(7, 7, 0.95) == 1
    assert bound_rate(2.5, 2.5, 0.95) == 1


def test_tabulate_needed_is_that_of_published_tables():
    """Wilks 1941: sample sizes of one-sided tolerance limits, 95 % confidence."""
    rows = tabulate_needed(4, 0.05, 0.01, 0.95)
    assert [row.errors for row in rows] == [0, 1, 2, 3, 4]
    assert [row.defects for row in rows] == [59, 93, 124, 153, 181]
    assert [row.normal for row in rows] == [299, 473, 628, 773, 913]
    assert count_needed(0, 0.02, 0.95) == 149


@FEW
@given(st.floats(0, 20), st.floats(0.005, 0.9), st.sampled_from([0.8, 0.95, 0.99]))
def test_count_needed_is_the_least_number_that_is_enough(errors, rate, confidence):
    images = count_needed(errors, rate, confidence)
    assert bound_rate(errors, images, confidence) <= rate
    assert images == 1 or bound_rate(errors, images - 1, confidence) > rate
