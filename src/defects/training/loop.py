"""The one training loop: epochs of a gradient-trained detector, resumable bit for bit on the CPU."""

import math
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
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config_schema import TrainConfig
from defects.data.datasets import to_device
from defects.evaluation.metrics import macro_f1, rank_metrics
from defects.evaluation.thresholds import best_threshold
from defects.messages import UserError
from defects.models import Batch, Detector
from defects.numerics import as_double, derive_seed
from defects.processes import average_buffers, follow_main
from defects.stamps import Stamp
from defects.training import checkpoint
from defects.training.tracking import Stopwatch, Tracker, describe_epoch, write_metrics

CHECKED_STEPS = 50  # losses are read after so many: reading them makes a GPU wait


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
        if not torch.cuda.is_available():
            precision = "no"
        elif torch.cuda.is_bf16_supported(including_emulation=False):  # emulated it is slow
            precision = "bf16"
        else:
            precision = "fp16"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a CUDA GPU: use auto, no or bf16")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes would not know of each other
        mixed_precision=precision,
        gradient_accumulation_steps=train.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def count_steps(train: TrainConfig, batches: int) -> int:
    """Optimiser steps of an epoch of so many batches."""
    return math.ceil(batches / train.accumulate)


def count_epochs(train: TrainConfig, steps_of_epoch: int) -> int:
    """Epochs to train: as many as the config says, in epochs or in steps."""
    if train.steps:
        return math.ceil(train.steps / steps_of_epoch)
    if train.least_steps and train.epochs:
        return max(train.epochs, math.ceil(train.least_steps / steps_of_epoch))
    return train.epochs


def plan_steps(train: TrainConfig, batches: int) -> tuple[int, int]:
    """Optimiser steps of all epochs, and of the warm-up among them, for epochs of so many batches.

    Raises UserError for a warm-up that outlasts the training or reaches a milestone.
    """
    steps_of_epoch = count_steps(train, batches)
    steps = train.steps or count_epochs(train, steps_of_epoch) * steps_of_epoch
    warmup = round(train.warmup_epochs * steps_of_epoch)
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
    """The learning rate of every optimiser step: from a hundredth of train.lr up to it, and from there down.

    It falls along a cosine, to 0 after the last step, or by train.lr_factor at each of train.milestones,
    which are shares of all steps.
    """
    steps, warmup = plan_steps(train, batches)
    shared = {"warmup_t": warmup, "warmup_lr_init": train.lr / 100, "t_in_epochs": False}
    if train.milestones is None:
        # timm warns of a cosine of one step; one of two begins with the same rate.
        steps_down = max(steps - warmup, 2)
        return CosineLRScheduler(optimizer, t_initial=steps_down, warmup_prefix=True, **shared)
    milestones = sorted(round(share * steps) for share in train.milestones)
    return MultiStepLRScheduler(
        optimizer, decay_t=milestones, decay_rate=train.lr_factor, warmup_prefix=False, **shared
    )


def average_weights(train: TrainConfig, detector: Detector) -> AveragedModel | None:
    """The exponential average of the weights, updated by `update_parameters`; None without train.ema.

    Its decay rises to train.ema as timm's ModelEmaV3 has it. Running statistics are averaged too; counters
    are those of the last update.
    """
    if not train.ema:
        return None

    def update(averages: list[torch.Tensor], values: list[torch.Tensor], updates: torch.Tensor) -> None:
        count = 1 + int(updates)
        weight = 1 - min(train.ema, 1 - count ** (-2 / 3))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)

    return AveragedModel(detector, multi_avg_fn=update, use_buffers=True)


@dataclass
class Trainer:
    """Trains `detector` and keeps last.pt; `history` has one dict of plain values per epoch.

    `validation` only reports: selection (`train.select=inner`) is allowed when it is an inner hold-out of the
    training side, never on the fold that is scored afterwards. `epochs` None means as many as the config
    says, in epochs or in steps.

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

    def fit(self, training: DataLoader, validation: DataLoader | None) -> None:
        """Train up to `epochs`, on from where `resume` came to; leaves the chosen weights in `detector`."""
        self._set_up(training)
        while len(self.history) < self.epochs:
            row = self._train_epoch(len(self.history))
            is_last = row["epoch"] == self.epochs
            if validation is not None and (is_last or row["epoch"] % self.train.validate_every == 0):
                row |= self._validate(validation)
            (row,) = broadcast_object_list([row])  # the same for all processes
            self.history.append(row)
            self.stopwatch.lap()
            self._save()
            self.tracker.log(row)
            is_validated = self._merit(row) is not None
            is_best = self.train.select == "inner" and is_validated and self._best_epoch() == row["epoch"]
            self.accelerator.print(describe_epoch(row, is_best))
        if self.train.select == "inner":
            self.accelerator.wait_for_everyone()
            self.detector.load_state_dict(checkpoint.load(self._selected_file(self._best_epoch())))
        elif self._averaged() is not self.detector:
            self.detector.load_state_dict(self._averaged().state_dict())

    def _set_up(self, training: DataLoader) -> None:
        """Optimiser, learning rate and weight average, as they were where a training is resumed."""
        train = self.train
        self.detector.to(memory_format=torch.channels_last)
        parameters = self.detector.parameter_groups(train.weight_decay)
        optimizer_type = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
        optimizer = optimizer_type(parameters, lr=train.lr)
        self.step, self.optimizer = self.accelerator.prepare(TrainingStep(self.detector), optimizer)
        if self.accelerator.num_processes > 1:
            self.step.forward_sync_buffers = False  # once an epoch is enough
        self.loader = prepare_data_loader(training, split_batches=True)  # a part of each batch per process
        self.epoch_steps = count_steps(train, len(self.loader))
        if self.epochs is None:
            self.epochs = count_epochs(train, self.epoch_steps)
            if train.steps is None and self.epochs > train.epochs:
                self.accelerator.print(
                    f"note: {self.epochs} epochs, not train.epochs={train.epochs}: these would be fewer than "
                    f"train.least_steps={train.least_steps} optimiser steps (null: {train.epochs} epochs)"
                )
        self.scheduler = make_scheduler(train, optimizer, len(self.loader))
        self.average = average_weights(train, self.detector)
        if self.history:
            self._restore()

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        """The epoch's row of the history. UserError where a loss or a weight is not finite."""
        # Everything random depends on (seed, epoch), so a resumed run needs no generator states.
        set_seed(derive_seed(self.train.seed, epoch), device_specific=True)
        self.loader.set_epoch(epoch)
        self.step.train()
        meter = Meter(self.detector)
        step = epoch * self.epoch_steps  # optimiser steps so far
        is_hidden = None if self.accelerator.is_main_process else True
        for batch in tqdm(self.loader, f"epoch {epoch + 1}/{self.epochs}", leave=False, disable=is_hidden):
            with self.accelerator.accumulate(self.step):
                self.scheduler.step_update(step)
                losses = self._losses(self.step, batch)
                self.accelerator.backward(losses["loss"])
                if self.train.clip_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.step.parameters(), self.train.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                step += 1
                if self.average is not None:
                    self.average.update_parameters(self.detector)
            meter.add(losses, batch)
            if step % CHECKED_STEPS == 0:
                self._refuse_infinite_losses(meter, epoch, step)
        self._refuse_infinite_losses(meter, epoch, step)
        if not all(parameter.isfinite().all() for parameter in self.detector.parameters()):
            self._refuse(f"a weight is not finite after epoch {epoch + 1}")
        average_buffers(self.detector)
        if self.average is not None:
            average_buffers(self.average.module)
        return {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **meter.result("train")}

    @torch.no_grad()
    def _validate(self, loader: DataLoader) -> dict[str, Any]:
        detector = self._averaged()
        step = TrainingStep(detector).eval()
        meter = Meter(detector)
        for batch in tqdm(loader, "validation", leave=False, disable=None):
            meter.add(self._losses(step, batch), batch)
        return meter.result("val")

    def _losses(self, step: nn.Module, batch: Batch) -> Batch:
        with self.accelerator.autocast():
            return step(to_device(batch, self.accelerator.device))

    def _averaged(self) -> Detector:
        """The detector that is validated and scored: with averaged weights, once there is an average."""
        if self.average is not None and self.average.n_averaged > 0:
            return self.average.module
        return self.detector

    def _refuse_infinite_losses(self, meter: "Meter", epoch: int, step: int) -> None:
        names = ", ".join(meter.find_infinite())
        if names:
            self._refuse(f"{names} not finite in epoch {epoch + 1}, by optimiser step {step}")

    def _refuse(self, problem: str) -> None:
        raise UserError(
            f"{self.folder}: training diverged ({problem}); last.pt holds the epoch before; lower train.lr "
            "or set train.clip_norm, then --restart"
        )

    # --- the best epoch --------------------------------------------------------------------------------

    def _merit(self, row: dict[str, Any]) -> float | None:
        """Macro-F1 at 0.5 or else AUROC; of masks of several classes their Dice. None if not validated."""
        marks_classes = self.detector.segments and len(self.detector.targets) > 1
        names = ["val_dice"] if marks_classes else ["val_macro_f1", "val_auroc"]
        return next((row[name] for name in names if name in row), None)

    def _best_epoch(self) -> int:
        """By merit, then lower loss, then later."""

        def rank(row: dict[str, Any]) -> tuple[float, float, int]:
            merit = self._merit(row)
            return -1.0 if merit is None else merit, -row.get("val_loss", 0.0), row["epoch"]

        return max(self.history, key=rank)["epoch"]

    def chosen_epoch(self) -> int:
        """The epoch whose weights are left in the detector."""
        return self._best_epoch() if self.train.select == "inner" else len(self.history)

    # --- checkpoints -----------------------------------------------------------------------------------

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

    def save_prepared(self) -> None:
        """Write last.pt before the first epoch, so that `Detector.prepare` is not repeated.

        All processes go on from its content: machines may differ in how they round.
        """
        follow_main(self.detector)
        if self.accelerator.is_main_process:
            content = {"fingerprint": self.fingerprint, "history": [], "detector": self.detector.state_dict()}
            checkpoint.save(self.folder / "last.pt", content)
            write_metrics(self.folder / "metrics.jsonl", [])

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        epoch = len(self.history)
        selects = self.train.select == "inner"
        if selects and self._best_epoch() == epoch:
            checkpoint.save(self._selected_file(epoch), self._averaged().state_dict())
        scaler = self.accelerator.scaler
        content = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "detector": self.detector.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        checkpoint.save(self.folder / "last.pt", content)
        write_metrics(self.folder / "metrics.jsonl", self.history)
        if selects:
            for path in self.folder.glob(self._selected_file("*").name):
                if path != self._selected_file(self._best_epoch()):
                    path.unlink()

    def _selected_file(self, epoch: int | str) -> Path:
        """Weights of the best epoch so far; those of the best one before stay until last.pt is written."""
        return self.folder / f"selected{epoch}.pt"

    def _restore(self) -> None:
        """Optimiser, weight average and loss scaler as they were. UserError for a last.pt that lacks them.

        A scaler starts anew where the run had none so far: on a CPU or in bf16, while this device takes fp16.
        """
        try:
            self.optimizer.load_state_dict(self.saved["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(self.saved["average"])
            if self.accelerator.scaler is not None and self.saved.get("scaler"):
                self.accelerator.scaler.load_state_dict(self.saved["scaler"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.folder / 'last.pt'} is of another version of this program or of PyTorch "
                f"({type(error).__name__}: {reason}): begin again with src/train.py --restart"
            ) from None


class Meter:
    """Mean of named losses over images, of all processes, and metrics of the scores where there are any:
    of the last target, whether there is any defect.

    Losses and scores stay on their device until they are asked for: a GPU would wait for every reading.
    accuracy and macro_f1 are those at probability 0.5, for detectors whose probability does not wait for a
    calibration; macro_f1, auroc and macro_f1_best need both classes.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.images = 0
        self.sums: dict[str, torch.Tensor] = {}  # of losses, by name
        self.labels: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []

    def add(self, losses: Batch, batch: Batch) -> None:
        images = len(batch["label"])
        self.images += images
        for name, value in losses.items():
            if name != "score":
                self.sums[name] = self.sums.get(name, 0.0) + as_double(value.detach()) * images
        if "score" in losses:
            self.labels.append(batch["label"][:, -1])
            self.scores.append(losses["score"][:, -1].detach())

    def find_infinite(self) -> list[str]:
        """Names of losses of which some value so far was not finite."""
        return [name for name, total in self.sums.items() if not total.isfinite()]

    def result(self, prefix: str) -> dict[str, float]:
        sums = {name: total.item() for name, total in self.sums.items()}
        scored = []  # label, score, whether predicted to be a defect
        if self.scores:
            scores = torch.cat(self.scores)
            predicted = self.detector.probability(scores) >= 0.5
            columns = torch.cat(self.labels).tolist(), scores.tolist(), predicted.tolist()
            scored = list(zip(*columns, strict=True))
        parts = gather_object([(self.images, sums, scored)])
        images = sum(part[0] for part in parts)
        names = dict.fromkeys(name for part in parts for name in part[1])
        values = {name: sum(part[1].get(name, 0.0) for part in parts) / images for name in names}
        scored = [row for part in parts for row in part[2]]
        if scored:
            labels, scores, predicted = (np.array(column) for column in zip(*scored, strict=True))
            has_both_classes = len(np.unique(labels)) == 2
            if not self.detector.needs_holdout:
                values["accuracy"] = float(accuracy_score(labels, predicted))
                if has_both_classes:
                    values["macro_f1"] = macro_f1(labels, predicted)
            if has_both_classes:
                values["auroc"] = rank_metrics(labels, scores)["auroc"]
                values["macro_f1_best"] = best_threshold(labels, scores)[1]
        return {f"{prefix}_{name}": value for name, value in values.items()}
