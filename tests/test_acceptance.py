"""The acceptance statement: its bounds, its refusals, what it leaves open."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.config_schema import ClaimsConfig
from defects.evaluation.acceptance import Predictions, bound_share, count_more, state_claims
from defects.evaluation.bounds import bound_rate, count_needed
from defects.evaluation.claim_records import Claims, summarise_claims

SAME = {"train": 100, "test": 100, "auroc": 0.52, "interval_90": (0.46, 0.58)}
DIFFERENT = SAME | {"auroc": 0.9, "interval_90": (0.85, 0.94)}


def out_of_fold(defects=30, normal=70, group_size=1, folds=("0", "1")):
    """Images of two folds, defects first, `group_size` of them in a group; kinds crack and hole in turns."""
    count = defects + normal
    labels = (np.arange(count) < defects).astype(int)
    kinds = np.where(labels == 0, "", np.where(np.arange(count) % 2 == 0, "crack", "hole"))
    return pd.DataFrame(
        {
            "image_id": [f"image_{number:03d}.png" for number in range(count)],
            "label": labels,
            "fold": [folds[number % len(folds)] for number in range(count)],
            "group": np.arange(count) // group_size,
            "kind": kinds,
        }
    )


def state(images, nested, grouping="searched", comparison=SAME, **options):
    """The statement, after it went through JSON, in which nothing may be infinite or NaN."""
    claims = state_claims(ClaimsConfig(), images, nested, grouping, comparison, **options)
    text = json.dumps(claims.to_json(), allow_nan=False)
    assert Claims.from_json(json.loads(text)) == claims
    return claims


def test_claims_bound_both_rates_and_kinds():
    images = out_of_fold()
    nested = images["label"].to_numpy().copy()
    nested[[1, 3]] = 0  # two holes escape
    nested[50] = 1
    claims = state(images, nested)
    assert (claims.escape.errors, claims.escape.images, claims.escape.independent_images) == (2, 30, 30)
    assert claims.escape.upper == pytest.approx(bound_rate(2, 30, 0.95))
    assert claims.false_alarm.upper == pytest.approx(bound_rate(1, 70, 0.95))
    assert claims.sentence == (
        "at this threshold, with 95 % confidence, at most 19.6 % of defects like these escape and at most "
        "6.60 % of normal parts are rejected"
    )
    assert {name: bound.errors for name, bound in claims.by_kind.items()} == {"crack": 0, "hole": 2}
    assert claims.limits == ()
    assert "they cannot be distinguished" in claims.comparison


def test_claims_groups_of_siblings_count_as_the_images_that_they_are_worth():
    images = out_of_fold(group_size=5)
    nested = images["label"].to_numpy()
    claims = state(images, nested)
    assert claims.escape.independent_images == pytest.approx(6)
    assert claims.escape.upper == pytest.approx(bound_rate(0, 6, 0.95))


@pytest.mark.parametrize("alike", [True, False])
def test_claims_bounds_hold_for_groups_of_siblings(alike):
    """Of 400 draws at a true rate of 0.3, whether siblings err together or not."""
    rng = np.random.default_rng(0)
    sizes = [6, 5, 5, 4, 3, 3, 2, 1, 1, 1, 1]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    holds = []
    for _ in range(400):
        draws = rng.random(len(sizes))[groups] if alike else rng.random(len(groups))
        holds.append(bound_share(draws < 0.3, groups, 0.95).upper >= 0.3)
    assert np.mean(holds) >= 0.95


def test_claims_by_class_stand_in_for_kinds():
    images = out_of_fold()
    nested = images["label"].to_numpy()
    is_crack = (images["kind"] == "crack").to_numpy(dtype=int)
    nothing = np.zeros(100, dtype=int)
    claims = state(
        images, nested, by_class={"1": Predictions(is_crack, nothing), "2": Predictions(nothing, nothing)}
    )
    assert claims.by_kind == {}
    assert claims.by_class["1"].escape.upper == 1  # all of them escaped
    assert claims.by_class["2"].escape is None  # there are none
    assert claims.by_class["2"].false_alarm.upper == pytest.approx(bound_rate(0, 100, 0.95))


def test_claims_without_defects_are_about_false_alarms_alone():
    images = out_of_fold(defects=0)
    claims = state(images, np.zeros(70, dtype=int))
    assert claims.escape is None
    assert "at most 4.19 % of normal parts are rejected; nothing is known of escapes" in claims.sentence
    assert claims.sample_sizes.more_defects == 149


@pytest.mark.parametrize("is_detected", [True, False])
def test_claims_of_all_or_no_defects_detected_are_finite(is_detected):
    images = out_of_fold()
    nested = images["label"].to_numpy() * int(is_detected)
    claims = state(images, nested)
    assert claims.escape.rate == (0 if is_detected else 1)
    assert claims.escape.upper == (pytest.approx(0.0951, abs=1e-4) if is_detected else 1)
    assert "nan" not in " ".join(summarise_claims(claims))


def test_claims_are_refused_for_a_single_fold():
    claims = state(out_of_fold(folds=("0",)), None)
    assert claims.refusal.startswith(
        "only one fold is trained, and its threshold was chosen on the same images"
    )
    assert (claims.escape, claims.false_alarm, claims.by_kind) == (None, None, {})
    assert claims.sentence == f"nothing is claimed: {claims.refusal}"
    assert claims.sample_sizes.more_defects is None
    assert "need 149 independent defects, 299 normal images" in "\n".join(summarise_claims(claims))


def test_claims_are_refused_for_the_full_fit():
    assert "the full fit has no folds" in state(out_of_fold(folds=("full",)), None).refusal


def test_claims_are_refused_where_names_repeat_and_groups_are_unknown():
    images = out_of_fold()
    images["image_id"] = [f"part{number // 2:02d}_{number % 2}.png" for number in range(100)]
    claims = state(images, images["label"].to_numpy())
    assert "names such as part00_0.png, part00_1.png repeat" in claims.refusal
    assert "split.group_pattern" in claims.refusal
    assert state(images, images["label"].to_numpy(), grouping="stated").refusal is None


def test_claims_are_refused_without_normal_images():
    claims = state(out_of_fold(normal=0), np.ones(30, dtype=int))
    assert "every image is taken for defective" in claims.refusal


def test_claims_without_normal_images_are_about_classes_alone():
    is_crack = np.arange(30) % 2
    by_class = {"crack": Predictions(is_crack, is_crack), "hole": Predictions(1 - is_crack, 1 - is_crack)}
    claims = state(out_of_fold(normal=0), np.ones(30, dtype=int), by_class=by_class)
    assert (claims.refusal, claims.escape, claims.false_alarm) == (None, None, None)
    assert "see the classes" in claims.sentence
    line = "  class crack             at most 18.2 % escape, at most 18.2 % are rejected without it"
    assert line in summarise_claims(claims)


@pytest.mark.parametrize(
    ("comparison", "grouping", "limit"),
    [
        (DIFFERENT, "searched", "images like the training ones only, since the test images differ"),
        (None, "searched", "no test images were compared (src/explore.py does it)"),
        ({"train": 9, "test": 9, "auroc": None}, "stated", "too few to be compared with the test images"),
        (SAME, "copies", "siblings were not searched for"),
    ],
)
def test_claims_say_what_they_do_not_cover(comparison, grouping, limit):
    images = out_of_fold()
    claims = state(images, images["label"].to_numpy(), grouping, comparison)
    assert len(claims.limits) == 1
    assert limit in claims.limits[0]


def test_claims_name_the_images_that_are_missing_for_a_claim():
    images = out_of_fold(defects=160, normal=240)
    nested = images["label"].to_numpy().copy()
    nested[200] = 1
    sizes = state(images, nested).sample_sizes
    assert (sizes.escape, sizes.false_alarm) == (0.02, 0.01)
    assert sizes.more_defects == 0  # 149 are enough
    assert sizes.more_normal == 473 - 240
    assert [row.errors for row in sizes.needed] == [0, 1, 2, 3]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_claims_of_any_predictions_hold_finite_bounds_above_the_rates(defects, normal, group_size, seed):
    images = out_of_fold(defects, normal + 1, group_size)
    nested = np.random.default_rng(seed).integers(0, 2, len(images))
    claims = state(images, nested)
    for bound in (claims.escape, claims.false_alarm, *claims.by_kind.values()):
        if bound is not None:
            assert bound.rate <= bound.upper <= 1
            assert 1 <= math.ceil(bound.independent_images) <= bound.images
    assert (claims.escape is None) == (defects == 0)


def test_inflation_takes_off_independent_images_and_is_made_up_for_by_more():
    is_error = np.arange(100) < 5
    plain = bound_share(is_error, np.arange(100), 0.95)
    inflated = bound_share(is_error, np.arange(100), 0.95, inflation=2.0)
    assert inflated.independent_images == 50
    assert inflated.upper == pytest.approx(bound_rate(2.5, 50, 0.95))
    assert count_more(inflated, 0.02, 0.95) == 2 * (count_needed(2.5, 0.02, 0.95) - 50)
    assert count_more(inflated, 0.02, 0.95) > count_more(plain, 0.02, 0.95)
