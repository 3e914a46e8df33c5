"""What a run reports: metrics.jsonl, a line for each epoch, wandb if the config asks, and its costs."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from defects.config_schema import Config
from defects.files import read_json, write_bytes, write_json
from defects.messages import UserError
from defects.models import Detector
from defects.versions import check_versions


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON object per epoch; the file is rewritten, so a resumed run repeats no line."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in history).encode())


def describe_epoch(row: dict[str, Any], is_best: bool) -> str:
    """`epoch 3  train loss 0.0031  val loss 0.0040  macro-F1 0.991 (best)`

    `is_best`: the weights of this epoch are those to keep so far, where train.select chooses an epoch.
    """
    parts = [f"epoch {row['epoch']:<3}", f"train loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val loss {row['val_loss']:.4f}")
    for name, title in (("val_auroc", "AUROC"), ("val_macro_f1", "macro-F1"), ("val_dice", "Dice")):
        if name in row:
            parts.append(f"{title} {row[name]:.3f}")
    return "  ".join(parts) + (" (best)" if is_best else "")


class Tracker:
    """Sends each epoch to wandb; does nothing when tracking.wandb is off, or in all but one process."""

    def __init__(self, config: Config, fold: str, folder: Path, active: bool = True):
        self.run = None
        settings = config.tracking
        if not active or settings.wandb == "off":
            return
        check_versions(["wandb"])
        import wandb  # imported only when it is used: it takes seconds

        try:
            self.run = wandb.init(
                project=settings.project,
                name=f"{config.experiment}-{fold}",
                mode=settings.wandb,
                dir=folder,
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracking.wandb={settings.wandb}: {error}; run `wandb login`, or use offline or off"
            ) from None

    def log(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.log(row, step=row["epoch"])

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class Stopwatch:
    """costs.json of a run: seconds spent on it so far, those before an interruption included, and more."""

    def __init__(self, path: Path, active: bool = True):
        self.path = path
        self.active = active
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
    """Megabytes of all that is needed to score, and the number of trainable parameters."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    trainable = sum(weights.numel() for weights in detector.parameters() if weights.requires_grad)
    return {"model_mb": round(size / 2**20, 3), "parameters": trainable}


def peak_memory_mb() -> float:
    """The most resident memory of this process so far, in MiB."""
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
