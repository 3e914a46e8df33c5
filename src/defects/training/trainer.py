"""The one training loop: epochs of a gradient-trained detector, resumable bit for bit on the CPU."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from sklearn.metrics import accuracy_score
from timm.optim import param_groups_weight_decay
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
from defects.seeds import derive
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
    """Device and processes from the launcher; by default bf16 on GPUs that have it, fp16 on others."""
    precision = train.precision
    if precision == "auto":
        # Older GPUs emulate bf16, slowly.
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if native else "fp16" if torch.cuda.is_available() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a CUDA GPU: use auto, no or bf16")
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=train.accumulate)


def to_device(batch: Batch, device: torch.device, channels_last: bool = True) -> Batch:
    """A loader's batch as detectors take it: on the device, image float32 [B, 3, H, W] in [0, 1]."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch | {"image": as_input(batch["image"], channels_last)}


def device_batches(loader: DataLoader, accelerator: Accelerator) -> Iterator[Batch]:
    """The batches of a loader for `Detector.prepare` and `calibrate`."""
    for batch in loader:
        yield to_device(batch, accelerator.device)


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
        # Biases and normalisation are not decayed.
        parameters = param_groups_weight_decay(self.detector, train.weight_decay)
        optimizer = torch.optim.AdamW(parameters, lr=train.lr)
        self.step, self.optimizer, self.loader = self.accelerator.prepare(
            TrainingStep(self.detector), optimizer, training
        )
        self.updates = -(-len(self.loader) // train.accumulate)  # optimiser steps in an epoch
        warmup = round(train.warmup_epochs * self.updates)
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(train.epochs * self.updates, warmup + 1),
            warmup_t=warmup,
            warmup_lr_init=train.lr / 100,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(self.detector, decay=train.ema, use_warmup=True) if train.ema else None

    def _epoch(self, epoch: int, validation: DataLoader | None) -> dict[str, Any]:
        # Everything random depends on (seed, epoch), so a resumed run needs no generator states.
        set_seed(derive(self.train.seed, epoch), device_specific=True)
        self.loader.set_epoch(epoch)
        self.step.train()
        meter, update = Meter(self.detector), epoch * self.updates
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
            meter.add(losses, batch)
        row = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **meter.result("train")}
        self._check_finite(row)
        return row | (self._validate(validation) if validation is not None else {})

    def _check_finite(self, row: dict[str, Any]) -> None:
        weights = all(parameter.isfinite().all() for parameter in self.detector.parameters())
        if not (weights and np.isfinite(row["train_loss"])):
            raise UserError(
                f"{self.folder}: training diverged in epoch {row['epoch']} (loss or weights not finite); "
                "last.pt holds the epoch before; lower train.lr or set train.clip_norm, then --restart"
            )

    def _losses(self, step: nn.Module, batch: Batch) -> Batch:
        with self.accelerator.autocast():
            return step(to_device(batch, self.accelerator.device, self.train.channels_last))

    @torch.no_grad()
    def _validate(self, loader: DataLoader) -> dict[str, Any]:
        detector = self.ema.module if self.ema else self.detector
        model, meter = TrainingStep(detector).eval(), Meter(detector)
        for batch in tqdm(loader, "validation", leave=False, disable=None):
            meter.add(self._losses(model, batch), batch)
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
        checkpoint.check_fingerprint(path, content, self.fingerprint)
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
    """Mean of named losses over images, of all processes; accuracy and macro-F1 at probability 0.5."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.sums, self.labels, self.predicted = detector, Counter(), [], []

    def add(self, losses: Batch, batch: Batch) -> None:
        self.sums["images"] += len(batch["label"])
        for name, value in losses.items():
            if name != "score":
                self.sums[name] += value.item() * len(batch["label"])
        if "score" in losses:
            self.labels += batch["label"].flatten().tolist()
            self.predicted += (self.detector.probability(losses["score"]) >= 0.5).flatten().tolist()

    def result(self, prefix: str) -> dict[str, float]:
        parts = gather_object([(self.sums, self.labels, self.predicted)])
        totals = {name: sum(part[0][name] for part in parts) for name in self.sums}
        labels, predicted = ([value for part in parts for value in part[k]] for k in (1, 2))
        images = totals.pop("images")
        values = {f"{prefix}_{name}": total / images for name, total in totals.items()}
        if labels:
            values[f"{prefix}_accuracy"] = float(accuracy_score(labels, predicted))
            values[f"{prefix}_macro_f1"] = macro_f1(np.array(labels), np.array(predicted))
        return values
