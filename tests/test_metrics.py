"""Dice, macro-F1 and their intervals, against their definitions."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defects.data import rle
from defects.data.rle import all_pairs
from defects.evaluation import metrics
from defects.evaluation.metrics import (
    dice_interval,
    dice_table,
    effective_number,
    interval,
    macro_f1,
    macro_f1_of_counts,
    mean_dice,
    pair_dice,
)
from defects.evaluation.outcome import outcome

SIZE = (4, 5)


MASK = arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1]))


FULL, EMPTY = np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)


def _table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "target", "runs"], dtype="str")


def _by_pixels(predicted: np.ndarray, truth: np.ndarray) -> float:
    both = either = 0
    for p, t in zip(predicted.flat, truth.flat, strict=True):
        both, either = both + (p and t), either + p + t
    return 2 * both / either if either else 1.0


@pytest.mark.parametrize(
    ("predicted", "truth", "dice"), [(EMPTY, EMPTY, 1), (FULL, EMPTY, 0), (EMPTY, FULL, 0), (FULL, FULL, 1)]
)
def test_dice_empty_and_full_masks(predicted, truth, dice):
    assert pair_dice(predicted, truth) == dice
    tables = [_table(("a", "1", rle.encode(mask))) for mask in (predicted, truth)]
    table = dice_table(*tables, {"a": SIZE})
    assert table["dice"].tolist() == [dice]
    assert table["empty"].tolist() == [not truth.any()]


def test_dice_half_of_a_defect_found():
    truth, predicted = EMPTY.copy(), EMPTY.copy()
    truth[:, :2] = 255  # any value but 0 is defect
    predicted[:, 1:3] = 1
    assert pair_dice(predicted, truth) == 0.5
    assert pair_dice(predicted.astype(bool), truth) == 0.5


@given(st.lists(st.tuples(MASK, MASK), min_size=1, max_size=4))
def test_dice_like_counting_pixels(pairs):
    names = [f"{i}.jpg" for i in range(len(pairs))]
    predicted, truth = (
        _table(*((name, "3", rle.encode(pair[side])) for name, pair in zip(names, pairs, strict=True)))
        for side in (0, 1)
    )
    expected = [_by_pixels(*pair) for pair in pairs]
    assert [pair_dice(*pair) for pair in pairs] == expected
    assert dice_table(predicted, truth, dict.fromkeys(names, SIZE))["dice"].tolist() == expected


def test_dice_the_published_score_of_an_empty_submission():
    """12,568 images, four classes, 7,095 pairs with a defect: 1 - 7095 / 50272."""
    ids = [f"{i}.jpg" for i in range(12_568)]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(12_568 * 4, 7_095, replace=False))
    marked = _table(*((ids[pair // 4], str(pair % 4 + 1), "1 50 300 7") for pair in chosen))
    truth = all_pairs(marked, ids, ["1", "2", "3", "4"])
    found = mean_dice(dice_table(_table(), truth, dict.fromkeys(ids, (256, 1600))))
    assert found["dice"] == pytest.approx(0.85887, abs=5e-6)
    assert (found["dice_non_empty"], found["pairs"], found["non_empty"]) == (0, 50_272, 7_095)


def test_dice_means_by_class():
    truth = _table(("a", "1", "1 4"), ("a", "2", ""), ("b", "1", "1 2"), ("b", "2", ""))
    predicted = _table(("b", "2", "3 1"), ("a", "1", "1 4"))
    found = mean_dice(dice_table(predicted, truth, {"a": SIZE, "b": SIZE}))
    assert (found["dice"], found["dice_non_empty"]) == (0.5, 0.5)
    assert found["classes"]["1"] == {"dice": 0.5, "dice_non_empty": 0.5, "pairs": 2, "non_empty": 2}
    assert found["classes"]["2"] == {"dice": 0.5, "dice_non_empty": None, "pairs": 2, "non_empty": 0}


def test_dice_pairs_are_joined_by_their_names_in_the_order_of_the_truth():
    truth = _table(("a", "1", "1 4"), ("b", "1", "5 4"))
    predicted = _table(("b", "1", "5 4"), ("a", "1", "1 4"))
    table = dice_table(predicted, truth, {"a": SIZE, "b": SIZE})
    assert table[["image_id", "dice"]].to_numpy().tolist() == [["a", 1.0], ["b", 1.0]]


@pytest.mark.parametrize(
    ("predicted", "truth", "reason"),
    [
        ([("c", "1", "")], [("a", "1", "")], r"not among the true ones: first \('c', '1'\)"),
        ([("a", "1", "1 99")], [("a", "1", "")], "past the last"),
        ([("a", "1", ""), ("a", "1", "1 1")], [("a", "1", "")], "twice"),
        ([], [("a", "1", ""), ("a", "1", "1 1")], "twice"),
    ],
)
def test_dice_tables_that_cannot_be_compared(predicted, truth, reason):
    with pytest.raises(ValueError, match=reason):
        dice_table(_table(*predicted), _table(*truth), {"a": SIZE})


def _scored_pairs(rng, groups, siblings, classes=2):
    """A dice table of `groups` of siblings that score alike, and the groups by image_id."""
    values = np.repeat(rng.beta(4, 1, groups), siblings * classes)
    images = [f"i{image}" for image in range(groups * siblings)]
    table = pd.DataFrame({"image_id": np.repeat(images, classes), "dice": values})
    return table, pd.Series(np.repeat(np.arange(groups), siblings), images)


@pytest.mark.parametrize("siblings", [1, 4])
def test_dice_interval_of_dice_holds_the_mean_of_new_images_nine_times_in_ten(siblings):
    rng, is_inside = np.random.default_rng(0), []
    for _ in range(300):
        low, high = dice_interval(*_scored_pairs(rng, 60, siblings), new_images=30 * siblings)
        obtained = _scored_pairs(rng, 30, siblings)[0]["dice"].mean()
        is_inside.append(low <= obtained <= high)
    assert 0.85 < np.mean(is_inside) < 0.95


def test_dice_interval_of_dice_needs_two_groups():
    table, groups = _scored_pairs(np.random.default_rng(0), 1, 3)
    assert dice_interval(table, groups, new_images=5) is None


SHARE = 0.06  # of defects, 30 of 500 images


def draw(random, found, rejected, size):
    """Labels, predictions and groups of 500 images; the images of a group share their outcome."""
    labels = np.repeat([1, 0], [30, 470])
    groups = np.concatenate([np.arange(30) // size, 1000 + np.arange(470) // size])
    luck = random.random(2000)[groups]
    return labels, (luck < np.where(labels == 1, found, rejected)).astype(int), groups


@pytest.mark.parametrize("size", [1, 4], ids=["single", "siblings"])
@pytest.mark.parametrize("found, rejected", [(0.05, 0.01), (0.5, 0.02), (0.9, 0.002), (1.0, 0.0)])
def test_interval_it_holds_nine_in_ten(found, rejected, size):
    random = np.random.default_rng(0)
    tp, fp = SHARE * found, (1 - SHARE) * rejected
    truth = macro_f1_of_counts(tp, fp, SHARE - tp, 1 - SHARE - fp)
    intervals = [interval(*draw(random, found, rejected, size), draws=500) for _ in range(150)]
    holds = np.mean([low <= truth + 1e-9 and truth - 1e-9 <= high for low, high in intervals])
    assert holds >= 0.84


@pytest.mark.parametrize("called", [0, 1], ids=["nothing", "all"])
def test_interval_it_has_a_width_where_nothing_varies(called):
    """A bootstrap would have none: every image is called the same."""
    labels = np.repeat([1, 0], [6, 94])
    low, high = interval(labels, np.full(100, called), np.arange(100))
    assert low <= macro_f1(labels, np.full(100, called)) <= high and high - low > 0.02


def test_interval_perfect_predictions_can_stay_perfect():
    labels = np.repeat([1, 0], [30, 470])
    low, high = interval(labels, labels, np.arange(500))
    assert 0.9 < low < high == 1.0


def test_interval_siblings_are_worth_less_than_single_images():
    labels, predicted = np.repeat([1, 0], [30, 470]), np.tile([1, 0, 0, 0, 0], 100)
    widths = [np.ptp(interval(labels, predicted, np.arange(500) // size)) for size in (1, 5, 10)]
    assert widths == sorted(widths) and widths[2] > 1.5 * widths[0]


def test_interval_the_same_every_time():
    labels, predicted = np.repeat([1, 0], [10, 90]), np.tile([1, 0, 0, 0, 0], 20)
    assert interval(labels, predicted, np.arange(100)) == interval(labels, predicted, np.arange(100))


@pytest.mark.parametrize(
    "groups, worth", [([1, 2, 3, 4], 4), ([1, 1, 1, 1], 1), ([1, 1, 2, 2], 2), ([1, 1, 1, 2], 1.6), ([], 0)]
)
def test_interval_effective_number(groups, worth):
    assert effective_number(np.array(groups)) == pytest.approx(worth)


def test_metrics_bootstrap_agrees_with_drawing_groups_one_by_one():
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


def test_metrics_share_weights_turn_the_test_into_one_with_the_training_share():
    labels = np.array([1] * 47 + [0] * 53)
    weights = metrics.share_weights(labels, 0.05)
    assert weights.mean() == pytest.approx(1) and weights[labels == 1].sum() == pytest.approx(5)
    table = pd.DataFrame({"label": labels, "answer": labels, "score": labels * 0.5})
    found = outcome(table, 0.05)
    assert found["macro_f1"] == found["macro_f1_at_training_share"] == found["auroc"] == 1.0
    wrong = table.assign(answer=np.where(np.arange(100) < 60, 1, 0))  # thirteen normal images rejected
    assert outcome(wrong, 0.05)["macro_f1_at_training_share"] < outcome(wrong, 0.05)["macro_f1"]
