"""The estimate of macro-F1 from out-of-fold scores."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from defects.config_schema import ThresholdConfig
from defects.evaluation.estimate import estimate
from defects.messages import UserError


def oof_table(labels, scores, folds):
    table = pd.DataFrame({"label": labels, "score": scores, "fold": folds})
    return table.assign(image_id=[f"i{row}" for row in range(len(table))], group=range(len(table)))


def test_estimate_of_a_perfect_and_of_a_single_fold():
    table = oof_table([0, 0, 0, 1] * 10, [-2.0, -1.0, -0.5, 3.0] * 10, ["0", "1"] * 20)
    found = estimate(table)
    assert found["macro_f1"] == found["nested_macro_f1"] == found["auroc"] == 1.0
    assert found["confusion_matrix"] == [[30, 0], [0, 10]] and -0.5 < found["score_threshold"] < 3
    assert found["threshold"] == pytest.approx(expit(found["score_threshold"]))
    single = estimate(table.assign(fold="0"))  # nothing is promised by the images a threshold was fitted on
    assert single["nested_macro_f1"] is None and single["interval_90"] is None


def test_estimate_by_another_rule_tells_the_errors_of_its_threshold():
    rng = np.random.default_rng(2)
    labels = (np.arange(400) % 8 == 0).astype(int)
    table = oof_table(labels, rng.normal(size=400) + 2 * labels, (np.arange(400) % 4).astype(str))
    plain, tenth = estimate(table), estimate(table, ThresholdConfig(rule="expected_fpr", fpr=0.1))
    assert plain["equal_error_rate"] == tenth["equal_error_rate"]
    is_passed = table["score"] < tenth["score_threshold"]
    assert tenth["false_acceptance"] == is_passed[labels == 1].mean()
    assert tenth["false_rejection"] == 0.1 and abs(tenth["nested_false_rejection"] - 0.1) < 0.03
    assert plain["macro_f1"] >= tenth["macro_f1"]


@pytest.mark.parametrize("folds", [["0", "1"], ["0"]])
def test_estimate_without_defects_no_macro_f1_is_estimated(folds):
    table = oof_table([0] * 40, np.arange(40.0), folds * (40 // len(folds)))
    found = estimate(table)
    assert found["rule"] == "expected_fpr" and found["false_rejection"] == 0.05
    assert {found[name] for name in ("macro_f1", "nested_macro_f1", "interval_90", "auroc")} == {None}
    assert (found["nested_false_rejection"] is not None) == (len(folds) == 2)


def test_estimate_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="1 out-of-fold scores are not finite"):
        estimate(oof_table([0, 1], [0.5, np.nan], ["0", "1"]))
