"""Double precision on devices that have none: Apple's MPS."""

import pytest
import torch

from defects.models.parts.pca import StreamingCovariance, explained_components
from defects.precision import double_device


@pytest.mark.parametrize(("device", "expected"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_double_device_is_the_cpu_for_mps_alone(device, expected):
    assert double_device(torch.device(device)) == torch.device(expected)


def test_streaming_covariance_of_mps_lies_on_the_cpu():
    vectors = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    stream = StreamingCovariance(3, torch.device("mps"))
    stream.update(vectors)
    assert stream.mean.device.type == "cpu" and stream.mean.dtype == torch.float64
    assert torch.allclose(stream.covariance, torch.cov(vectors.double().T))
    assert explained_components(stream.covariance, 0.99) == 3
