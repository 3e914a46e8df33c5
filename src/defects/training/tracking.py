"""What a run tells while it runs: metrics.jsonl, one line an epoch, and wandb if the config asks."""

import json
from pathlib import Path
from typing import Any

from defects.config import Config
from defects.files import write_bytes
from defects.messages import UserError


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON object per epoch; rewritten whole, so a resumed run repeats no line."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in history).encode())


def summary(row: dict[str, Any], best: bool) -> str:
    """`epoch 3  train loss 0.0031  val loss 0.0040  macro-F1 0.991 (best)`"""
    parts = [f"epoch {row['epoch']:<3}", f"train loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val loss {row['val_loss']:.4f}")
    for name, title in (("val_auroc", "AUROC"), ("val_macro_f1", "macro-F1"), ("val_dice", "Dice")):
        if name in row:
            parts.append(f"{title} {row[name]:.3f}")
    return "  ".join(parts) + (" (best)" if best else "")


class Tracker:
    """Sends each epoch to wandb; does nothing when tracking.wandb is off, or in all but one process."""

    def __init__(self, config: Config, fold: str, folder: Path, active: bool = True):
        self.run = None
        if active and config.tracking.wandb != "off":
            self.run = _start_wandb(config, fold, folder)

    def log(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.log(row, step=row["epoch"])

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def _start_wandb(config: Config, fold: str, folder: Path) -> Any:
    import wandb  # imported only when asked for: it takes seconds

    try:
        return wandb.init(
            project=config.tracking.project,
            name=f"{config.experiment}-{fold}",
            mode=config.tracking.wandb,
            dir=folder,
            config=config.model_dump(mode="json"),
        )
    except wandb.Error as error:
        raise UserError(
            f"tracking.wandb={config.tracking.wandb}: {error}; run `wandb login`, or use offline or off"
        ) from None
