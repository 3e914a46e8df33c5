"""The parity gate: scores and maps within limits, labels the same where rounding does not decide."""

import numpy as np
import pytest
from scipy.special import expit

from defects.deploy.model import Output
from defects.deploy.parity import SCORE_LIMIT, Parity

SCORES = np.array([[-3.0], [-1.0], [0.5], [2.0]])


def compared(found, threshold, found_probability=None, expected=SCORES):
    """A gate that has seen these raw scores [N, 1] beside the expected ones, at a threshold in log-odds."""
    gate = Parity(np.array([expit(threshold)]), expit)
    found = np.asarray(found, float).reshape(-1, 1)
    probability = expit(found) if found_probability is None else found_probability
    gate.add(Output(expected, expit(expected), None), Output(found, probability, None))
    return gate


def test_parity_excuses_a_label_whose_score_ties_with_the_threshold():
    """Scores that agree to 2e-7 lay on both sides of it: the export was refused."""
    gate = compared(SCORES + 2e-7, threshold=0.5 + 1e-7)
    assert gate.is_changed.sum() == 1 and gate.wrong_labels == 0 and gate.passes


def test_parity_excuses_many_ties():
    expected = np.full((6, 1), 0.25) + np.arange(6)[:, None] * 1e-9
    gate = compared(expected[::-1], threshold=0.25 + 2.5e-9, expected=expected)
    assert gate.is_changed.sum() == 6 and gate.passes


def test_parity_refuses_a_label_whose_score_is_not_at_the_threshold():
    wrong = expit(SCORES)
    wrong[3] = 0.1
    gate = compared(SCORES, threshold=0.0, found_probability=wrong)
    assert gate.score_difference == 0 and gate.wrong_labels == 1 and not gate.passes


@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (2.0, False)])
def test_parity_refuses_scores_beyond_the_limit(share, passes):
    assert compared(SCORES * (1 + share * SCORE_LIMIT), threshold=0.0).passes == passes
