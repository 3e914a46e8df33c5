"""What a run cost: time, memory and size, kept in costs.json beside its checkpoints."""

import sys
import time
from pathlib import Path

import psutil
import torch

from defects.files import read_json, write_json
from defects.models import Detector


class Stopwatch:
    """Seconds spent on a run so far, those before an interruption included."""

    def __init__(self, path: Path, active: bool = True):
        self.path, self.active = path, active
        self.costs = read_json(path) or {}
        self.last = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last lap to `fit_seconds`."""
        now = time.perf_counter()
        seconds = self.costs.get("fit_seconds", 0.0) + now - self.last
        self.last = now
        self.note(fit_seconds=round(seconds, 3))

    def note(self, **costs: float | int | str) -> None:
        self.costs |= costs
        if self.active:
            write_json(self.path, self.costs)


def model_size(detector: Detector) -> dict[str, float | int]:
    """Of everything that is needed to score: megabytes of the state, number of trainable parameters."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    trainable = sum(weights.numel() for weights in detector.parameters() if weights.requires_grad)
    return {"model_mb": round(size / 2**20, 3), "parameters": trainable}


def peak_memory_mb() -> float:
    """The most memory this process has held so far (resident), in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' if count > 1 else ''}"
