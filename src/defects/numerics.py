"""Seeds, double precision, and files of tensors."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *key: int) -> int:
    """A seed below 2**32 for `key`, such as (epoch, row); those of neighbouring keys are unrelated."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1)[0])


def double_device(device: torch.device) -> torch.device:
    """Where float64 values for `device` are computed: the CPU for Apple's MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def as_double(values: torch.Tensor) -> torch.Tensor:
    """float64, on `double_device` of the values' own."""
    return values.to(double_device(values.device)).double()


def load_tensors(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a file, on the CPU, read without running any code in it.

    Raises FileNotFoundError, and ValueError with a short reason for any other content.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles, which are refused next
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # zip and pickle, and whatever a broken pickle's steps raise
        raise ValueError(type(error).__name__) from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content
