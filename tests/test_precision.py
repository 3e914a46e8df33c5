"""Double precision on devices that have none: Apple's MPS."""

import pytest
import torch

from defects.precision import double_device


@pytest.mark.parametrize(("device", "expected"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_double_device_is_the_cpu_for_mps_alone(device, expected):
    assert double_device(torch.device(device)) == torch.device(expected)
