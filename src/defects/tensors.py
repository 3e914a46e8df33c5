"""Files of tensors and plain values, read without running any code that they may hold."""

import warnings
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path) -> dict[str, Any]:
    """On the CPU. Raises FileNotFoundError, and ValueError with a short reason for any other content."""
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
