"""From maps to masks: what a rule makes of a map, and that rules are found where they were planted."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from defects.evaluation.mask_rules import Rule, make_mask, remove_small
from defects.evaluation.metrics import pair_dice
from defects.evaluation.thresholds import fit_acceptance_threshold
from defects.submission.masks import (
    CHOICES,
    Candidate,
    apply_rule,
    dice_under,
    fit_rules,
    measure_candidates,
    nested_dice,
)

SIZE = (40, 50)  # 2,000 pixels: the component shares are 0, 0.8 and 3 pixels
SHARES = st.integers(0, 10).map(lambda value: value / 10)


def blank(size=SIZE):
    return np.zeros(size, np.float32)


def box(top, left, height, width, size=SIZE):
    """bool [H, W] with one rectangle."""
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def candidate(number, probabilities, truth, label=0.9, target="1", folds=2):
    return Candidate(f"{number}.jpg", target, str(number % folds), label, probabilities, truth)


# --- a map and a rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 60), (44, 66), (8, 12), (4, 6), (43, 67)])
def test_masks_a_mask_has_the_size_of_the_image(size):
    """The map's lower left quarter is marked, whatever the resolution of map and image."""
    probabilities = blank((8, 12))
    probabilities[4:, :6] = 0.9
    mask = make_mask(probabilities, 0.9, size, Rule())
    middle, half = round(size[0] / 2), round(size[1] / 2)
    assert mask.shape == size and mask.dtype == bool
    assert pair_dice(mask, box(middle, 0, size[0], half, size)) > 0.9
    assert (
        mask[middle + 1 :, : half - 1].all()
        and not mask[: middle - 1].any()
        and not mask[:, half + 1 :].any()
    )


def test_masks_the_default_rule_is_that_of_somebody_who_tunes_nothing():
    assert Rule() == (0.5, 0.5, 0, 0) and (Rule().pixel, Rule().component) in CHOICES
    probabilities = np.array([[0.0, 0.49, 0.5], [0.51, 0.0, 1.0]], np.float32)
    assert make_mask(probabilities, 0.5, (2, 3), Rule()).tolist() == [[0, 0, 1], [1, 0, 1]]
    assert not make_mask(probabilities, 0.49, (2, 3), Rule()).any()


def test_masks_each_threshold_of_a_rule_reaches_its_own_value():
    probabilities = 0.6 * box(0, 0, 4, 5) + 0.6 * box(20, 20, 1, 3)
    kept = make_mask(probabilities, 0.7, SIZE, Rule(0.7, 0.59, 3 / 2000, 23 / 2000))
    assert kept.sum() == 23
    assert not make_mask(probabilities, 0.69, SIZE, Rule(label=0.7)).any()
    assert not make_mask(probabilities, 1, SIZE, Rule(pixel=0.61)).any()
    assert make_mask(probabilities, 1, SIZE, Rule(component=4 / 2000)).sum() == 20
    assert not make_mask(probabilities, 1, SIZE, Rule(area=24 / 2000)).any()


def test_masks_small_parts_are_removed_and_corners_connect():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    assert np.array_equal(remove_small(mask, 0), mask)
    assert remove_small(mask, 2).astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert not remove_small(mask, 4).any() and not remove_small(~mask & mask, 1).any()


# --- what is measured --------------------------------------------------------------------------------------


@given(arrays.arrays(float, (9, 11), elements=SHARES), arrays.arrays(bool, (18, 20)))
def test_masks_every_outcome_is_that_of_the_mask_which_the_rule_makes(probabilities, truth):
    probabilities = probabilities.astype(np.float16)
    outcomes = measure_candidates([candidate(0, probabilities, truth)])
    assert list(zip(outcomes["pixel"], outcomes["component"], strict=True)) == CHOICES
    for row in outcomes.itertuples():
        mask = make_mask(probabilities, 1, truth.shape, Rule(0, row.pixel, row.component, 0))
        assert row.area == mask.mean()
        assert row.dice == pytest.approx(pair_dice(mask, truth))
        assert row.empty == pair_dice(np.zeros_like(truth), truth)


def test_masks_a_pair_with_nothing_to_mark_costs_next_to_nothing():
    """12,568 images of 4 classes have to be measured, and most pairs are empty."""
    size, quiet = (256, 1600), np.full((41, 256), 0.2, np.float16)
    pairs = [Candidate(f"{i}", "1", "0", 0.1, quiet, np.zeros(size, bool)) for i in range(500)]
    start = time.process_time()
    outcomes = measure_candidates(pairs)
    assert (time.process_time() - start) / len(pairs) < 0.001
    assert len(outcomes) == 500 * len(CHOICES) and (outcomes["dice"] == 1).all()


# --- what is fitted ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=12), SHARES)
def test_masks_the_fit_acceptance_threshold_is_as_good_as_any(rows, default):
    values, reached, below = np.array(rows).T

    def total(cut):
        return np.where(values >= cut, reached, below).sum()

    cut = fit_acceptance_threshold(values, reached, below, default)
    best = max(map(total, [0.0, *values, *(values + 0.01)]))
    assert total(cut) == pytest.approx(best)
    assert (cut == default) == (total(default) == pytest.approx(best))  # moved for a gain alone


def test_masks_a_cut_lies_in_the_middle_between_two_values():
    values = np.array([0.2, 0.4, 0.8])
    assert fit_acceptance_threshold(values, np.array([0, 0, 1]), np.ones(3)) == pytest.approx(0.6)
    assert fit_acceptance_threshold(values, np.zeros(3), np.ones(3)) > 0.8


def planted(kind):
    """Twenty candidates, half of them with a defect, whose best rule differs from the default in `kind`."""
    for i in range(20):
        true, place, label = i % 4 < 2, box(4 + i, 5, 12, 10 + i), 0.9
        probabilities, truth = 0.95 * place, place & true
        if kind == "label":  # a shape is always there, and the label tells whether it counts
            label = 0.8 + i / 1000 if true else 0.6 + i / 1000
        elif kind == "pixel":  # a halo
            probabilities = np.maximum(0.65 * place, 0.55 * box(2 + i, 3, 16, 14 + i)) * true
        elif kind == "component":  # specks of two pixels
            probabilities = 0.95 * (place * true + sum(box(0, 2 * k, 1, 1) for k in range(3)))
            probabilities[-1, ::4] = probabilities[-1, 1::4] = 0.95
        elif kind == "area":  # what is no defect is smaller
            probabilities = 0.95 * (place if true else box(4, 4, 5, 5 + i % 5))
        yield candidate(i, probabilities.astype(np.float32), truth, label)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("label", 0.62, 0.8),
        ("pixel", 0.6, 0.6),
        ("component", 0.0015, 0.0015),
        ("area", 45 / 2000, 120 / 2000),
    ],
)
def test_masks_planted_thresholds_are_found(kind, low, high):
    outcomes = measure_candidates(planted(kind))
    rule = fit_rules(outcomes)["1"]
    assert low <= getattr(rule, kind) <= high
    untouched = {
        name: value for name, value in Rule()._asdict().items() if name not in (kind, "label", "area")
    }
    assert untouched.items() <= rule._asdict().items()
    tuned, plain = (dice_under(outcomes, {"1": each})["dice"].mean() for each in (rule, Rule()))
    assert tuned == 1 > plain + 0.05


def test_masks_a_class_that_no_image_has_keeps_the_plain_rule():
    """Fitted to what is empty alone, it would never mark anything."""
    empty = [each._replace(truth=np.zeros_like(each.truth)) for each in planted("pixel")]
    assert fit_rules(measure_candidates(empty))["1"] == Rule()


def test_masks_each_class_has_a_rule_of_its_own():
    kinds = {"2": "pixel", "4": "component"}
    both = [each._replace(target=name) for name, kind in kinds.items() for each in planted(kind)]
    rules = fit_rules(measure_candidates(both))
    for name, kind in kinds.items():
        assert rules[name] == fit_rules(measure_candidates(planted(kind)))["1"]


def test_outcomes_under_a_rule_are_those_of_its_masks():
    pairs = [each._replace(target=kind) for kind in ("label", "area") for each in planted(kind)]
    rules = {"label": Rule(0.7, 0.4, 0.0004, 0), "area": Rule(0.5, 0.6, 0.0, 0.03)}
    found = dice_under(measure_candidates(pairs), rules).set_index(["image_id", "target"])
    assert len(found) == len(pairs)
    for each in pairs:
        mask = make_mask(each.probabilities, each.label, SIZE, rules[each.target])
        row = found.loc[(each.image_id, each.target)]
        assert row["dice"] == pytest.approx(pair_dice(mask, each.truth))
        assert row["empty"] == (not each.truth.any())
    outcomes = measure_candidates(pairs[:3])
    assert apply_rule(outcomes, rules["label"]).index.tolist() == [each.image_id for each in pairs[:3]]


def test_masks_no_fold_has_a_say_in_its_own_rule():
    """The pairs of fold 0 left as they are score the same, whatever the others of fold 0 become."""
    outcomes = measure_candidates(planted("label"))
    held = outcomes["fold"] == "0"
    changed = held & outcomes["image_id"].isin([f"{i}.jpg" for i in range(10)])
    # Many surely labelled masks that are wrong: they would have everybody's emptied.
    wrong = {"label": 0.85, "dice": 0.0, "empty": 1.0}
    turned = outcomes.assign(**{name: outcomes[name].mask(changed, value) for name, value in wrong.items()})
    before, after = (nested_dice(each).set_index("image_id")["dice"] for each in (outcomes, turned))
    same, other = (outcomes.loc[which, "image_id"].unique() for which in (held & ~changed, ~held))
    assert len(same) == 5 and before[same].equals(after[same])
    assert not before[other].equals(after[other])  # they are fitted on fold 0


def test_masks_nested_rules_are_fitted_on_the_other_folds():
    outcomes = measure_candidates(planted("area"))
    parts = [
        dice_under(outcomes[outcomes["fold"] == held], fit_rules(outcomes[outcomes["fold"] == other]))
        for held, other in ("01", "10")
    ]
    assert nested_dice(outcomes).equals(pd.concat(parts, ignore_index=True))
    assert nested_dice(outcomes[outcomes["fold"] == "0"]) is None
