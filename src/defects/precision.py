"""Double precision, where a device has it."""

import torch


def as_double(values: torch.Tensor) -> torch.Tensor:
    """float64, on the device of `values` or, if that has no float64 (Apple's MPS), on the CPU."""
    return values.to(double_device(values.device)).double()


def double_device(device: torch.device) -> torch.device:
    """Where what is computed for `device` in float64 has to lie."""
    return torch.device("cpu") if device.type == "mps" else device
