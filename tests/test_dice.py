"""The competition's metric against its definition, pixel by pixel, and against the published baseline."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defects.data import rle
from defects.data.rle import all_pairs
from defects.evaluation.metrics import dice_interval, dice_table, mean_dice, pair_dice

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
def test_empty_and_full_masks(predicted, truth, dice):
    assert pair_dice(predicted, truth) == dice
    tables = [_table(("a", "1", rle.encode(mask))) for mask in (predicted, truth)]
    table = dice_table(*tables, {"a": SIZE})
    assert table["dice"].tolist() == [dice]
    assert table["empty"].tolist() == [not truth.any()]


def test_half_of_a_defect_found():
    truth, predicted = EMPTY.copy(), EMPTY.copy()
    truth[:, :2] = 255  # any value but 0 is defect
    predicted[:, 1:3] = 1
    assert pair_dice(predicted, truth) == 0.5
    assert pair_dice(predicted.astype(bool), truth) == 0.5


@given(st.lists(st.tuples(MASK, MASK), min_size=1, max_size=4))
def test_like_counting_pixels(pairs):
    names = [f"{i}.jpg" for i in range(len(pairs))]
    predicted, truth = (
        _table(*((name, "3", rle.encode(pair[side])) for name, pair in zip(names, pairs, strict=True)))
        for side in (0, 1)
    )
    expected = [_by_pixels(*pair) for pair in pairs]
    assert [pair_dice(*pair) for pair in pairs] == expected
    assert dice_table(predicted, truth, dict.fromkeys(names, SIZE))["dice"].tolist() == expected


def test_the_published_score_of_an_empty_submission():
    """12,568 images, four classes, 7,095 pairs with a defect: 1 - 7095 / 50272."""
    ids = [f"{i}.jpg" for i in range(12_568)]
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(12_568 * 4, 7_095, replace=False))
    marked = _table(*((ids[pair // 4], str(pair % 4 + 1), "1 50 300 7") for pair in chosen))
    truth = all_pairs(marked, ids, ["1", "2", "3", "4"])
    found = mean_dice(dice_table(_table(), truth, dict.fromkeys(ids, (256, 1600))))
    assert found["dice"] == pytest.approx(0.85887, abs=5e-6)
    assert (found["dice_non_empty"], found["pairs"], found["non_empty"]) == (0, 50_272, 7_095)


def test_means_by_class():
    truth = _table(("a", "1", "1 4"), ("a", "2", ""), ("b", "1", "1 2"), ("b", "2", ""))
    predicted = _table(("b", "2", "3 1"), ("a", "1", "1 4"))
    found = mean_dice(dice_table(predicted, truth, {"a": SIZE, "b": SIZE}))
    assert (found["dice"], found["dice_non_empty"]) == (0.5, 0.5)
    assert found["classes"]["1"] == {"dice": 0.5, "dice_non_empty": 0.5, "pairs": 2, "non_empty": 2}
    assert found["classes"]["2"] == {"dice": 0.5, "dice_non_empty": None, "pairs": 2, "non_empty": 0}


def test_pairs_are_joined_by_their_names_in_the_order_of_the_truth():
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
def test_tables_that_cannot_be_compared(predicted, truth, reason):
    with pytest.raises(ValueError, match=reason):
        dice_table(_table(*predicted), _table(*truth), {"a": SIZE})


def _scored_pairs(rng, groups, siblings, classes=2):
    """A dice table of `groups` of siblings that score alike, and the groups by image_id."""
    values = np.repeat(rng.beta(4, 1, groups), siblings * classes)
    images = [f"i{image}" for image in range(groups * siblings)]
    table = pd.DataFrame({"image_id": np.repeat(images, classes), "dice": values})
    return table, pd.Series(np.repeat(np.arange(groups), siblings), images)


@pytest.mark.parametrize("siblings", [1, 4])
def test_interval_of_dice_holds_the_mean_of_new_images_nine_times_in_ten(siblings):
    rng, is_inside = np.random.default_rng(0), []
    for _ in range(300):
        low, high = dice_interval(*_scored_pairs(rng, 60, siblings), new_images=30 * siblings)
        obtained = _scored_pairs(rng, 30, siblings)[0]["dice"].mean()
        is_inside.append(low <= obtained <= high)
    assert 0.85 < np.mean(is_inside) < 0.95


def test_interval_of_dice_needs_two_groups():
    table, groups = _scored_pairs(np.random.default_rng(0), 1, 3)
    assert dice_interval(table, groups, new_images=5) is None
