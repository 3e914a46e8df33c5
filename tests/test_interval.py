"""The interval around a promised macro-F1: does it hold what it is meant to hold?"""

import numpy as np
import pytest

from defects.evaluation.metrics import effective_number, interval, macro_f1, macro_f1_of_counts

SHARE = 0.06  # of defects, 30 of 500 images


def draw(random, found, rejected, size):
    """Labels, predictions and groups of 500 images; the images of a group share their outcome."""
    labels = np.repeat([1, 0], [30, 470])
    groups = np.concatenate([np.arange(30) // size, 1000 + np.arange(470) // size])
    luck = random.random(2000)[groups]
    return labels, (luck < np.where(labels == 1, found, rejected)).astype(int), groups


@pytest.mark.parametrize("size", [1, 4], ids=["single", "siblings"])
@pytest.mark.parametrize("found, rejected", [(0.05, 0.01), (0.5, 0.02), (0.9, 0.002), (1.0, 0.0)])
def test_it_holds_nine_in_ten(found, rejected, size):
    random = np.random.default_rng(0)
    tp, fp = SHARE * found, (1 - SHARE) * rejected
    truth = macro_f1_of_counts(tp, fp, SHARE - tp, 1 - SHARE - fp)
    intervals = [interval(*draw(random, found, rejected, size), draws=500) for _ in range(150)]
    holds = np.mean([low <= truth + 1e-9 and truth - 1e-9 <= high for low, high in intervals])
    assert holds >= 0.84


@pytest.mark.parametrize("called", [0, 1], ids=["nothing", "all"])
def test_it_has_a_width_where_nothing_varies(called):
    """A bootstrap would have none: every image is called the same."""
    labels = np.repeat([1, 0], [6, 94])
    low, high = interval(labels, np.full(100, called), np.arange(100))
    assert low <= macro_f1(labels, np.full(100, called)) <= high and high - low > 0.02


def test_perfect_predictions_can_stay_perfect():
    labels = np.repeat([1, 0], [30, 470])
    low, high = interval(labels, labels, np.arange(500))
    assert 0.9 < low < high == 1.0


def test_siblings_are_worth_less_than_single_images():
    labels, predicted = np.repeat([1, 0], [30, 470]), np.tile([1, 0, 0, 0, 0], 100)
    widths = [np.ptp(interval(labels, predicted, np.arange(500) // size)) for size in (1, 5, 10)]
    assert widths == sorted(widths) and widths[2] > 1.5 * widths[0]


def test_the_same_every_time():
    labels, predicted = np.repeat([1, 0], [10, 90]), np.tile([1, 0, 0, 0, 0], 20)
    assert interval(labels, predicted, np.arange(100)) == interval(labels, predicted, np.arange(100))


@pytest.mark.parametrize(
    "groups, worth", [([1, 2, 3, 4], 4), ([1, 1, 1, 1], 1), ([1, 1, 2, 2], 2), ([1, 1, 1, 2], 1.6), ([], 0)]
)
def test_effective_number(groups, worth):
    assert effective_number(np.array(groups)) == pytest.approx(worth)
