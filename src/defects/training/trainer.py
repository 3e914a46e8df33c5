"""The one training loop: epochs of a gradient-trained detector, resumable bit for bit on the CPU."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.metrics import accuracy_score
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config import TrainConfig
from defects.data.datasets import as_input
from defects.errors import UserError
from defects.models import Batch, Detector
from defects.scoring.thresholds import macro_f1
from defects.training import checkpoint
from defects.training.tracking import Tracker, summary, write_metrics


class TrainingStep(nn.Module):
    """The loss as a forward pass, which is what distributed wrappers synchronise."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> Batch:
        return self.detector.training_loss(batch)


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Device and processes from the launcher; bf16 by default where the GPU has it."""
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=train.accumulate)


@dataclass
class Trainer:
    """Trains `detector` and keeps last.pt; `history` has one dict of plain values per epoch.

    `validation` is only looked at: selection (`train.select=inner`) and stopping are allowed when it is
    an inner hold-out of the training side, never on the fold that is scored afterwards.
    """

    detector: Detector
    train: TrainConfig
    epochs: int
    folder: Path
    fingerprint: dict[str, Any]
    accelerator: Accelerator
    tracker: Tracker
    history: list[dict[str, Any]] = field(default_factory=list)

    def fit(self, training: DataLoader, validation: DataLoader | None) -> None:
        """Train up to `epochs`, from last.pt if there is one, and leave the chosen weights in `detector`."""
        self._set_up(training)
        self._resume()
        while len(self.history) < self.epochs and not self._exhausted():
            row = self._epoch(len(self.history), validation)
            self.history.append(row)
            self._save()
            self.tracker.log(row)
            self.accelerator.print(summary(row, validation is not None and self._best() == row["epoch"]))
        self._load_chosen()

    def _set_up(self, training: DataLoader) -> None:
        train = self.train
        if train.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        parameters = [parameter for parameter in self.detector.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
        self.step, self.optimizer, self.loader = self.accelerator.prepare(
            TrainingStep(self.detector), optimizer, training
        )
        self.updates = -(-len(self.loader) // train.accumulate)  # optimiser steps in an epoch
        warmup = round(train.warmup_epochs * self.updates)
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(self.epochs * self.updates, warmup + 1),
            warmup_t=warmup,
            warmup_lr_init=train.lr / 100,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(self.detector, decay=train.ema, use_warmup=True) if train.ema else None

    def _epoch(self, epoch: int, validation: DataLoader | None) -> dict[str, Any]:
        # Everything random depends on (seed, epoch), so a resumed run needs no generator states.
        set_seed(self.train.seed * 100_003 + epoch)
        self.loader.set_epoch(epoch)
        self.step.train()
        meter, update = Meter(), epoch * self.updates
        bar = tqdm(self.loader, f"epoch {epoch + 1}/{self.epochs}", leave=False, disable=None)
        for batch in bar:
            with self.accelerator.accumulate(self.step):
                self.scheduler.step_update(update)
                losses = self._losses(self.step, batch)
                self.accelerator.backward(losses["loss"])
                if self.train.clip_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.step.parameters(), self.train.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                update += 1
                if self.ema:
                    self.ema.update(self.detector, step=update)
            meter.add(losses, batch, self.accelerator)
        row = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **meter.result("train")}
        if not np.isfinite(row["train_loss"]):
            raise UserError(
                f"{self.folder}: the loss of epoch {epoch + 1} is not finite; lower train.lr or set "
                "train.clip_norm; last.pt holds the epoch before"
            )
        return row | (self._validate(validation) if validation is not None else {})

    def _losses(self, step: nn.Module, batch: Batch) -> Batch:
        device = self.accelerator.device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        batch["image"] = as_input(batch["image"], self.train.channels_last)
        with self.accelerator.autocast():
            return step(batch)

    @torch.no_grad()
    def _validate(self, loader: DataLoader) -> dict[str, Any]:
        model = TrainingStep(self.ema.module if self.ema else self.detector).eval()
        meter = Meter()
        for batch in loader:
            meter.add(self._losses(model, batch), batch, self.accelerator)
        return meter.result("val")

    def _rank(self, row: dict[str, Any]) -> tuple[float, float, int]:
        """Better epochs rank higher: macro-F1, then the lower loss, then the later epoch."""
        return row["val_macro_f1"], -row["val_loss"], row["epoch"]

    def _best(self) -> int:
        return max(self.history, key=self._rank)["epoch"]

    def chosen_epoch(self) -> int:
        """The epoch whose weights are left in the detector."""
        return self._best() if self.train.select == "inner" else len(self.history)

    def _exhausted(self) -> bool:
        patience = self.train.patience
        return bool(patience and self.history and len(self.history) - self._best() >= patience)

    def _state(self) -> dict[str, torch.Tensor]:
        return (self.ema.module if self.ema else self.detector).state_dict()

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        epoch = len(self.history)
        if self.train.select == "inner" and self._best() == epoch:
            checkpoint.save(self.folder / "selected.pt", self._state())
        if self.train.save_every and epoch % self.train.save_every == 0:
            checkpoint.save(self.folder / f"epoch{epoch}.pt", self._state())
        scaler = self.accelerator.scaler
        content = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "detector": self.detector.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        checkpoint.save(self.folder / "last.pt", content)
        write_metrics(self.folder / "metrics.jsonl", self.history)

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        content = checkpoint.load(path)
        checkpoint.check_fingerprint(path, content["fingerprint"], self.fingerprint)
        self.detector.load_state_dict(content["detector"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(content["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.history = content["history"]
        write_metrics(self.folder / "metrics.jsonl", self.history)
        self.accelerator.print(f"resuming {self.folder} after epoch {len(self.history)}")

    def _load_chosen(self) -> None:
        if self.train.select == "inner":
            self.accelerator.wait_for_everyone()
            self.detector.load_state_dict(checkpoint.load(self.folder / "selected.pt"))
        elif self.ema:
            self.detector.load_state_dict(self.ema.module.state_dict())


class Meter:
    """Mean of named losses over images; accuracy and macro-F1 at probability 0.5 of the scores seen."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.images, self.labels, self.predicted = 0, [], []

    def add(self, losses: Batch, batch: Batch, accelerator: Accelerator) -> None:
        count = len(batch["label"])
        self.images += count
        for name, value in losses.items():
            if name != "score":
                self.sums[name] = self.sums.get(name, 0.0) + value.item() * count
        if "score" in losses:
            self.labels.append(batch["label"].cpu().numpy().ravel())
            self.predicted.append(losses["score"].cpu().numpy().ravel() >= 0)

    def result(self, prefix: str) -> dict[str, float]:
        values = {f"{prefix}_{name}": total / self.images for name, total in self.sums.items()}
        if self.labels:
            labels, predicted = np.concatenate(self.labels).astype(int), np.concatenate(self.predicted)
            values[f"{prefix}_accuracy"] = float(accuracy_score(labels, predicted))
            values[f"{prefix}_macro_f1"] = macro_f1(labels, predicted)
        return values
