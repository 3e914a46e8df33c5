"""What all detectors share that learn from normal images: calibration, sizes from a checkpoint."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defects.models.base import AnomalyDetector
from defects.models.statistics import GaussianSmoothing


def detector(fpr: float = 0.05) -> AnomalyDetector:
    return AnomalyDetector(expected_fpr=fpr, window=None)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_detector_expected_share_of_normal_images_is_called_defective(fpr):
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 7 + 3
    found = detector(fpr)
    found.set_scale(scores)
    assert (found.probability(scores) > 0.5).float().mean() == pytest.approx(fpr, abs=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40, unique=True))
def test_detector_probability_keeps_the_order_of_any_scores(scores):
    found, values = detector(), torch.tensor(scores, dtype=torch.float64) / 100
    found.set_scale(values[: len(scores) // 2 + 1].float())
    probability = found.probability(values.sort().values)
    assert ((probability > 0) & (probability < 1)).all()
    assert (probability.diff() > 0).all()


@pytest.mark.parametrize("scores", [[2.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_detector_a_hold_out_that_scores_alike_gives_a_usable_scale(scores):
    found = detector()
    found.set_scale(torch.tensor(scores))
    below, above = found.probability(torch.tensor([scores[0] - 1, scores[0] + 1]).double())
    assert 0 < below < 0.5 < above < 1


def test_detector_a_checkpoint_brings_the_sizes_of_its_buffers_back():
    source, target = detector(), detector()
    for one, size in ((source, 7), (target, 0)):
        one.register_buffer("memory_bank", torch.rand(size, 3))
        one.inner = GaussianSmoothing(1.0)
        one.inner.register_buffer("rows", torch.rand(size))
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.memory_bank, source.memory_bank)
    assert torch.equal(target.inner.rows, source.inner.rows)
