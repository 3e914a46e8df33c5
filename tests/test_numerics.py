"""Numbers that devices and seeds have an influence on."""

import pytest
import torch

from defects.numerics import double_device


@pytest.mark.parametrize(("device", "expected"), [("mps", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_double_device_is_the_cpu_for_mps_alone(device, expected):
    assert double_device(torch.device(device)) == torch.device(expected)
