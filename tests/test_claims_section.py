"""The section "What may be claimed": its tables, its charts, and what it says where nothing can be said."""

import numpy as np
import pandas as pd
import pytest

from defects.config_schema import ClaimsConfig
from defects.data.fold_files import read_grouping
from defects.evaluation.acceptance import state_claims
from defects.evaluation.detection_by_size import fit_detection_curves
from defects.evaluation.fewer_defects import FILE, METRICS, extrapolate, make_curve_stamp, summarise_draws
from defects.files import write_json
from defects.reports import html
from defects.reports.claims_section import (
    ClaimTables,
    build_bound_table,
    build_claims_section,
    build_size_table,
    list_size_notes,
    load_claim_tables,
)
from defects.stages import ensure_tables


@pytest.fixture(scope="module")
def images():
    """120 images, 40 of them defective, of which the larger ones have higher scores."""
    random = np.random.default_rng(0)
    labels = np.repeat([1, 0], [40, 80])
    sizes = np.where(labels == 1, np.exp(random.normal(3, 0.8, 120)), np.nan)
    scores = np.where(labels == 1, np.nan_to_num(3 * (np.log(sizes) - 2.5)), -4.0) + random.normal(size=120)
    return pd.DataFrame(
        {
            "image_id": [f"{number * 7 % 1000}_{number}" for number in range(120)],
            "label": labels,
            "fold": (np.arange(120) % 3).astype(str),
            "group": np.arange(120),
            "kind": np.where(labels == 1, np.where(np.arange(120) % 2, "scratch", "dent"), ""),
            "score": scores,
            "size": sizes,
        }
    )


def make_tables(images, nested="default", learning_curve=None):
    if isinstance(nested, str):
        nested = (images["score"] > 0).to_numpy(dtype=int)
    claims = state_claims(ClaimsConfig(), images, nested, "stated", None)
    size = images["size"]
    return ClaimTables(
        claims=claims,
        labels=images["label"].to_numpy(),
        scores=images["score"].to_numpy(),
        nested=nested,
        groups=images["group"].to_numpy(),
        sizes=pd.DataFrame({"longest_side": size, "area": size**2}),
        learning_curve=learning_curve,
    )


def make_curve():
    random = np.random.default_rng(0)
    rows = []
    for count in (5, 10, 20):
        for _ in range(3):
            score = 1 - 0.8 * count**-0.4 + 0.01 * random.normal()
            rows.append({"wanted": count, "defects": count, "macro_f1": score, "auroc": score})
    table = pd.DataFrame(rows)
    return {
        "classifier": "a cheap classifier",
        "summary": summarise_draws(table).to_dict("records"),
        "extrapolation": {metric: extrapolate(table, metric) for metric in METRICS},
        "draws": rows,
    }


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=8, normals=20))


def render(section):
    return html.build_page("title", "subtitle", [section])


def test_section_shows_sentence_bounds_sizes_and_learning_curve(images, config):
    page = render(build_claims_section(config, make_tables(images, learning_curve=make_curve())))
    for text in (
        "At this threshold, with 95 % confidence, at most",
        "escapes: scratch",
        "independent images",
        "normal images for at most 1 % false alarms",
        ">Detection by longest side<",
        ">Detection by area<",
        ">AUROC over the number of defects<",
        "40 defects in place of 20",
    ):
        assert text in page
    assert "nan" not in page.lower().replace("nanum", "")
    assert "Expected cost" not in page


def test_section_shows_costs_where_they_choose_the_threshold(images, config):
    threshold = config.threshold.model_validate(
        {"rule": "expected_cost", "costs": {"escape": 10, "false_alarm": 1}}
    )
    config = config.model_copy(update={"threshold": threshold})
    page = render(build_claims_section(config, make_tables(images)))
    assert ">Expected cost over the threshold<" in page
    assert "an escape costs 10, a false alarm 1" in page


def test_section_names_the_command_of_a_learning_curve(images, config):
    page = render(build_claims_section(config, make_tables(images)))
    assert "src/learning_curve.py --data" in page


def test_section_of_a_single_fold_claims_nothing(images, config):
    page = render(build_claims_section(config, make_tables(images.assign(fold="0"), nested=None)))
    assert "Nothing is claimed: only one fold" in page
    assert "With a single fold nothing can be said of sizes" in page
    assert "decided wrongly</td>" not in page


def test_section_without_masks_says_so(images, config):
    page = render(build_claims_section(config, make_tables(images.assign(size=np.nan))))
    assert "Detection by size cannot be said: no defect has a mask" in page
    assert "<svg" not in page


def test_section_without_defects_has_false_alarms_alone(images, config):
    page = render(build_claims_section(config, make_tables(images[images["label"] == 0])))
    assert "nothing is known of escapes" in page
    assert "Detection by" not in page
    assert "learning_curve" not in page


def test_bound_table_has_a_row_for_each_kind(images):
    table = build_bound_table(make_tables(images).claims)
    assert list(table.index) == ["escapes", "escapes: dent", "escapes: scratch", "false alarms"]


def test_sizes_that_cannot_be_said_are_named_once(images):
    defects = images[images["label"] == 1]
    sizes = pd.DataFrame({"longest_side": defects["size"], "area": defects["size"] ** 2})
    detected = (defects["size"] < 20).to_numpy()  # the smaller ones
    curves = fit_detection_curves(sizes, detected, np.arange(len(defects)))
    assert build_size_table(curves)["a90"].tolist() == ["cannot be said"] * 2
    notes = list_size_notes(curves)
    assert notes[0].startswith("a50, a90, a90/95 by longest side: larger defects are not detected more")
    assert "MIL-HDBK-1823A advises 60" in notes[-1]


def test_claim_tables_read_masks_and_a_learning_curve_of_the_same_images(config):
    tables = ensure_tables(config)
    rows = tables.folds
    scores = rows["label"].to_numpy(dtype=float)
    nested = rows["label"].to_numpy(dtype=int)
    claims = state_claims(config.claims, rows, nested, read_grouping(config), None)
    before = load_claim_tables(config, rows, scores, nested, claims)
    is_defect = rows["label"] == 1
    assert before.sizes.loc[is_defect, "area"].tolist() == [64.0] * is_defect.sum()
    assert before.sizes.loc[~is_defect].isna().all(axis=None)
    assert before.learning_curve is None
    write_json(config.dataset_dir / FILE, {"stamp": make_curve_stamp(config)})
    assert load_claim_tables(config, rows, scores, nested, claims).learning_curve is not None
    write_json(config.dataset_dir / FILE, {"stamp": {"settings": {}, "files": {"images.csv": "other"}}})
    assert load_claim_tables(config, rows, scores, nested, claims).learning_curve is None
