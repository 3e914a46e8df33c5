"""The learning curve: which defects are drawn, what is scored, how far it is extrapolated."""

import numpy as np
import pandas as pd
import pytest

from defects.config_schema import ThresholdConfig
from defects.evaluation.fewer_defects import (
    LabelledFeatures,
    check_defects,
    describe_gains,
    describe_learning_curve,
    draw_defects,
    extrapolate,
    list_defect_counts,
    predict_by_power_law,
    score_draws,
    score_with_known,
    summarise_draws,
)
from defects.messages import UserError


class Distance:
    """A classifier by the distance to the mean of the defects that it knows."""

    def __init__(self, features, labels):
        self.defects = int(labels.sum())
        self.mean = features[labels == 1].mean(axis=0)

    def predict_proba(self, features):
        probability = 1 / (1 + ((features - self.mean) ** 2).mean(axis=1))
        return np.column_stack([1 - probability, probability])


def make_images(defects=24, normal=100, siblings=2, seed=0):
    labels = np.repeat([1, 0], [defects, normal])
    features = np.random.default_rng(seed).normal(size=(len(labels), 6)) + 1.5 * labels[:, None]
    return LabelledFeatures(features, labels, np.arange(len(labels)) // siblings)


@pytest.mark.parametrize(
    ("defects", "counts"),
    [(4, [2, 4]), (5, [2, 5]), (30, [5, 10, 20, 30]), (300, [5, 10, 20, 50, 100, 200, 300])],
)
def test_numbers_of_defects_end_with_all(defects, counts):
    assert list_defect_counts(defects) == counts


def test_drawn_defects_are_whole_groups_beside_all_normal_images():
    images = make_images()
    is_known = draw_defects(images, 7, np.random.default_rng(0))
    is_drawn = is_known & (images.labels == 1)
    assert is_drawn.sum() == 6  # groups of two
    assert is_known[images.labels == 0].all()
    assert np.unique(images.groups[is_drawn], return_counts=True)[1].tolist() == [2, 2, 2]


def test_no_defects_are_drawn_where_they_are_of_one_group():
    images = make_images(siblings=5, defects=20)
    assert draw_defects(images, 5, np.random.default_rng(0)) is None


def test_defects_that_are_not_known_are_scored_and_not_learnt_from():
    images = make_images()
    learnt = []

    def fit(features, labels):
        learnt.append(int(labels.sum()))
        return Distance(features, labels)

    is_known = draw_defects(images, 6, np.random.default_rng(0))
    scores = score_with_known(images, is_known, fit, ThresholdConfig(), folds=5, seed=0)
    assert learnt == [4, 4, 4]  # three groups make three folds
    assert 0.5 < scores["auroc"] <= 1
    assert 0 < scores["macro_f1"] <= 1


def test_draws_are_the_same_again():
    images = make_images()
    tables = [list(score_draws(images, Distance, ThresholdConfig(), 3, 2, seed=0)) for _ in range(2)]
    assert tables[0] == tables[1]
    assert [row["wanted"] for row in tables[0]] == [5, 5, 10, 10, 20, 20, 24, 24]


def test_power_law_is_continued():
    counts = np.array([5.0, 10, 20, 40])
    predicted = predict_by_power_law(counts, 1 - 2 * counts**-0.5, np.array([80.0]))
    assert predicted == pytest.approx([1 - 2 * 80**-0.5])


def make_draws(spread=0.01):
    random = np.random.default_rng(0)
    rows = []
    for count in (5, 10, 20, 40):
        for _ in range(6):
            score = 1 - 0.8 * count**-0.4 + spread * random.normal()
            rows.append({"wanted": count, "defects": count, "macro_f1": score, "auroc": score})
    return pd.DataFrame(rows)


def test_extrapolation_ends_at_twice_the_defects_within_its_band():
    reached = extrapolate(make_draws(), "auroc")
    assert reached["defects"][0] == pytest.approx(40)
    assert reached["defects"][-1] == pytest.approx(80)
    true_score = 1 - 0.8 * 80**-0.4
    assert reached["low"][-1] < true_score < reached["high"][-1]
    assert 0 < reached["gain_low"] < reached["gain"] < reached["gain_high"]


def test_nothing_is_extrapolated_from_two_numbers_of_defects():
    table = make_draws().query("wanted > 10")
    assert extrapolate(table, "auroc") is None
    curve = {"extrapolation": {"macro_f1": None, "auroc": None}}
    assert all("cannot be said" in line for line in describe_gains(curve))


def test_perfect_scores_are_extrapolated_to_perfect_ones():
    table = make_draws().assign(auroc=1.0)
    reached = extrapolate(table, "auroc")
    assert reached["gain"] == pytest.approx(0, abs=1e-9)
    assert max(reached["high"]) <= 1


def test_table_has_a_line_for_each_number_of_defects():
    table = make_draws()
    extrapolation = {metric: extrapolate(table, metric) for metric in ("macro_f1", "auroc")}
    summary = summarise_draws(table).to_dict("records")
    lines = describe_learning_curve(
        {"classifier": "some", "summary": summary, "extrapolation": extrapolation}
    )
    assert len(lines) == 2 + 4 + 2
    assert lines[-1].startswith("80 defects in place of 40: AUROC +0.0")


@pytest.mark.parametrize(
    ("labels", "groups", "text"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3], "there are no defects"),
        ([1, 1, 1, 1], [0, 1, 2, 3], "there are no normal images"),
        ([1, 1, 1, 0], [0, 0, 1, 3], "there are 3 of 2"),
    ],
)
def test_too_few_defects_are_refused(labels, groups, text):
    with pytest.raises(UserError, match=text):
        check_defects(np.array(labels), np.array(groups))
