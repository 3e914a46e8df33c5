"""The one training loop: epochs of a gradient-trained detector, resumable bit for bit on the CPU."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object, set_seed
from sklearn.metrics import accuracy_score
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config import TrainConfig
from defects.data.datasets import to_device
from defects.evaluation.metrics import macro_f1, rank_metrics
from defects.evaluation.thresholds import best_threshold
from defects.messages import UserError
from defects.models import Batch, Detector
from defects.numerics import derive_seed
from defects.processes import average_buffers, follow_main
from defects.stamps import Stamp
from defects.training import checkpoint
from defects.training.costs import Stopwatch
from defects.training.tracking import Tracker, summary, write_metrics


class TrainingStep(nn.Module):
    """The losses as a forward pass, which is what distributed wrappers synchronise."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> Batch:
        return self.detector.training_loss(batch) if self.training else self.detector.validation(batch)


def make_accelerator(train: TrainConfig) -> Accelerator:
    """Device and processes from the launcher; by default bf16 on GPUs that have it, fp16 on others."""
    precision = train.precision
    if precision == "auto":
        # Older GPUs emulate bf16, slowly.
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if native else "fp16" if torch.cuda.is_available() else "no"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a CUDA GPU: use auto, no or bf16")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes would not know of each other
        mixed_precision=precision,
        gradient_accumulation_steps=train.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def optimizer_steps(train: TrainConfig, batches: int) -> int:
    """Of an epoch of so many batches."""
    return -(-batches // train.accumulate)


def planned_steps(train: TrainConfig, batches: int) -> tuple[int, int]:
    """Optimiser steps of the whole training, and of its warm-up, for epochs of so many batches.

    Raises UserError for a warm-up that outlasts the training or reaches a milestone.
    """
    epoch = optimizer_steps(train, batches)
    steps = train.steps or train.epochs * epoch
    warmup = round(train.warmup_epochs * epoch)
    length = f"train.warmup_epochs={train.warmup_epochs:g} ({warmup} optimiser steps)"
    if 0 < steps < warmup:
        setting = f"train.steps={steps}" if train.steps else f"train.epochs={train.epochs} ({steps})"
        raise UserError(f"{length} is longer than {setting}: lower it, or train.lr is never reached")
    early = [share for share in train.milestones or [] if warmup and round(share * steps) <= warmup]
    if early and steps:
        raise UserError(
            f"train.milestones: {min(early):g} of {steps} steps is not after {length}: lower the warm-up, or "
            "leave that milestone out"
        )
    return steps, warmup


def make_scheduler(train: TrainConfig, optimizer: torch.optim.Optimizer, batches: int) -> Scheduler:
    """The rate of every optimiser step: from a hundredth of train.lr up to it, and from there down.

    Down along a cosine, to 0 after the last step, or by train.lr_factor at each of train.milestones, which
    are shares of all steps.
    """
    steps, warmup = planned_steps(train, batches)
    shared = {"warmup_t": warmup, "warmup_lr_init": train.lr / 100, "t_in_epochs": False}
    if train.milestones is None:
        # timm warns of a cosine of one step; one of two begins with the same rate.
        falling = max(steps - warmup, 2)
        return CosineLRScheduler(optimizer, t_initial=falling, warmup_prefix=True, **shared)
    milestones = sorted(round(share * steps) for share in train.milestones)
    return MultiStepLRScheduler(
        optimizer, decay_t=milestones, decay_rate=train.lr_factor, warmup_prefix=False, **shared
    )


@dataclass
class Trainer:
    """Trains `detector` and keeps last.pt; `history` has one dict of plain values per epoch.

    `validation` is only looked at: selection (`train.select=inner`) and stopping are allowed when it is
    an inner hold-out of the training side, never on the fold that is scored afterwards. `epochs` None
    means as many as the config says, in epochs or in steps.

    Of several processes each takes an equal part of every batch, so that steps, epochs and learning rates are
    those of one; batch normalisation alone sees no more than its part. Validation is shared out too.
    """

    detector: Detector
    train: TrainConfig
    epochs: int | None
    folder: Path
    fingerprint: Stamp
    accelerator: Accelerator
    tracker: Tracker
    stopwatch: Stopwatch
    history: list[dict[str, Any]] = field(default_factory=list)

    def resume(self) -> bool:
        """Bring the detector and the history back from last.pt; False if there is none."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        self.saved = checkpoint.load(path)
        checkpoint.check_fingerprint(path, self.saved, self.fingerprint, but=checkpoint.MAPS_ONLY)
        checkpoint.fill(self.detector, path, self.saved)
        self.history = self.saved["history"]
        if self.accelerator.is_main_process:
            write_metrics(self.folder / "metrics.jsonl", self.history)
        self.accelerator.print(f"resuming {self.folder} after epoch {len(self.history)}")
        return True

    def keep_prepared(self) -> None:
        """Write last.pt before the first epoch, so that `Detector.prepare` is not repeated.

        All processes go on from what it holds: machines may differ in how they round.
        """
        follow_main(self.detector)
        if self.accelerator.is_main_process:
            content = {"fingerprint": self.fingerprint, "history": [], "detector": self.detector.state_dict()}
            checkpoint.save(self.folder / "last.pt", content)
            write_metrics(self.folder / "metrics.jsonl", [])

    def fit(self, training: DataLoader, validation: DataLoader | None) -> None:
        """Train up to `epochs`, on from where `resume` came to; leaves the chosen weights in `detector`."""
        self._set_up(training)
        while len(self.history) < self.epochs and not self._exhausted():
            # One row for all processes, or some might stop before others.
            (row,) = broadcast_object_list([self._epoch(len(self.history), validation)])
            self.history.append(row)
            self.stopwatch.lap()
            self._save()
            self.tracker.log(row)
            best = self._merit(row) is not None and self._best() == row["epoch"]
            self.accelerator.print(summary(row, best))
        self._load_chosen()

    def _set_up(self, training: DataLoader) -> None:
        train = self.train
        if train.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        parameters = self.detector.parameter_groups(train.weight_decay)
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
        optimizer = kind(parameters, lr=train.lr)
        self.step, self.optimizer = self.accelerator.prepare(TrainingStep(self.detector), optimizer)
        if self.accelerator.num_processes > 1:
            self.step.forward_sync_buffers = False  # once an epoch is enough
        self.loader = prepare_data_loader(training, split_batches=True)  # each process has a part of each
        self.updates = optimizer_steps(train, len(self.loader))
        if self.epochs is None:
            self.epochs = -(-train.steps // self.updates) if train.steps else train.epochs
        self.scheduler = make_scheduler(train, optimizer, len(self.loader))
        self.ema = ModelEmaV3(self.detector, decay=train.ema, use_warmup=True) if train.ema else None
        if self.history:
            self._restore()

    def _epoch(self, epoch: int, validation: DataLoader | None) -> dict[str, Any]:
        # Everything random depends on (seed, epoch), so a resumed run needs no generator states.
        set_seed(derive_seed(self.train.seed, epoch), device_specific=True)
        self.loader.set_epoch(epoch)
        self.step.train()
        meter, update = Meter(self.detector), epoch * self.updates
        hidden = None if self.accelerator.is_main_process else True
        bar = tqdm(self.loader, f"epoch {epoch + 1}/{self.epochs}", leave=False, disable=hidden)
        for batch in bar:
            with self.accelerator.accumulate(self.step):
                self.scheduler.step_update(update)
                losses = self._losses(self.step, batch)
                self._check_losses(losses, epoch, update)
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
        for module in (self.detector, self.ema.module) if self.ema else (self.detector,):
            average_buffers(module)
        row = {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **meter.result("train")}
        if not all(parameter.isfinite().all() for parameter in self.detector.parameters()):
            self._diverged(f"a weight is not finite after epoch {epoch + 1}")
        looked_at = (epoch + 1) % self.train.validate_every == 0 or epoch + 1 == self.epochs
        return row | (self._validate(validation) if validation is not None and looked_at else {})

    def _check_losses(self, losses: Batch, epoch: int, update: int) -> None:
        broken = [name for name, value in losses.items() if not value.isfinite().all()]
        if broken:
            self._diverged(
                f"{', '.join(broken)} not finite in epoch {epoch + 1}, optimiser step {update + 1}"
            )

    def _diverged(self, what: str) -> None:
        raise UserError(
            f"{self.folder}: training diverged ({what}); last.pt holds the epoch before; lower train.lr or "
            "set train.clip_norm, then --restart"
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

    def _merit(self, row: dict[str, Any]) -> float | None:
        """Macro-F1 at 0.5 or else AUROC; of masks of several classes their Dice. None if not looked at."""
        detector = self.detector
        marks_classes = detector.segments and len(detector.targets) > 1
        names = ["val_dice"] if marks_classes else ["val_macro_f1", "val_auroc"]
        return next((row[name] for name in names if name in row), None)

    def _rank(self, row: dict[str, Any]) -> tuple[float, float, int]:
        """Better epochs rank higher: by merit, then lower loss, then later."""
        merit = self._merit(row)
        return -1.0 if merit is None else merit, -row.get("val_loss", 0.0), row["epoch"]

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
            checkpoint.save(self._selected_file(epoch), self._state())
        kept = self.train.average and epoch > self.epochs - self.train.average
        if kept or (self.train.save_every and epoch % self.train.save_every == 0):
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
        for path in self.folder.glob(self._selected_file("*").name):
            if path != self._selected_file(self._best()):
                path.unlink()

    def _selected_file(self, epoch: int | str) -> Path:
        """Of the best epoch so far. That of the one before stays until last.pt knows of the new one."""
        return self.folder / f"selected{epoch}.pt"

    def _restore(self) -> None:
        """Optimiser, weight average and loss scaler as they were. UserError for a last.pt that lacks them.

        A scaler starts anew where the run had none so far: on a CPU or in bf16, while this device takes fp16.
        """
        try:
            self.optimizer.load_state_dict(self.saved["optimizer"])
            if self.ema:
                self.ema.module.load_state_dict(self.saved["ema"])
            if self.accelerator.scaler is not None and self.saved.get("scaler"):
                self.accelerator.scaler.load_state_dict(self.saved["scaler"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.folder / 'last.pt'} is of another version of this program or of PyTorch "
                f"({type(error).__name__}: {reason}): begin again with src/train.py --restart"
            ) from None

    def _load_chosen(self) -> None:
        if self.train.select == "inner":
            self.accelerator.wait_for_everyone()
            self.detector.load_state_dict(checkpoint.load(self._selected_file(self._best())))
        elif self.ema:
            self.detector.load_state_dict(self.ema.module.state_dict())
        elif self.train.average and self.history:
            self.accelerator.wait_for_everyone()
            epochs = range(max(1, self.epochs - self.train.average + 1), self.epochs + 1)
            self.detector.load_state_dict(checkpoint.mean([self.folder / f"epoch{n}.pt" for n in epochs]))


class Meter:
    """Mean of named losses over images, of all processes, and metrics of the scores where there are any:
    of the last target, whether there is any defect.

    accuracy and macro_f1 are those at probability 0.5, for detectors whose probability does not wait for
    a calibration; macro_f1, auroc and macro_f1_best need both classes.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector, self.sums, self.labels, self.scores = detector, Counter(), [], []
        self.predicted: list[bool] = []

    def add(self, losses: Batch, batch: Batch) -> None:
        images = len(batch["label"])
        self.sums["images"] += images
        for name, value in losses.items():
            if name != "score":
                self.sums[name] += value.item() * images
        if "score" in losses:
            score = losses["score"][:, -1]
            self.labels += batch["label"][:, -1].tolist()
            self.scores += score.tolist()
            self.predicted += (self.detector.probability(score) >= 0.5).tolist()

    def result(self, prefix: str) -> dict[str, float]:
        parts = gather_object([(self.sums, self.labels, self.scores, self.predicted)])
        names = dict.fromkeys(name for part in parts for name in part[0])
        totals = {name: sum(part[0][name] for part in parts) for name in names}
        labels, scores, predicted = (
            np.array([value for part in parts for value in part[index]]) for index in (1, 2, 3)
        )
        images = totals.pop("images")
        values = {name: total / images for name, total in totals.items()}
        both = len(np.unique(labels)) == 2
        if len(labels) and not self.detector.needs_holdout:
            values["accuracy"] = float(accuracy_score(labels, predicted))
            if both:
                values["macro_f1"] = macro_f1(labels, predicted)
        if both:
            values["auroc"] = rank_metrics(labels, scores)["auroc"]
            values["macro_f1_best"] = best_threshold(labels, scores)[1]
        return {f"{prefix}_{name}": value for name, value in values.items()}
