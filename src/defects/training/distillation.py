"""Distillation: a patch description network learns the patch features of any timm backbone.

Batzner et al. 2023 (arXiv 2303.14535), appendix A.1, with the features of PatchCore (Roth et al. 2022,
arXiv 2106.08265, section 3.1).
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config_schema import Config, refuse_external, resolve
from defects.data.datasets import EpochSampler, ImageDataset, as_input
from defects.data.folder_scan import list_images
from defects.files import locked
from defects.messages import UserError
from defects.models import check_options
from defects.models.efficientad import TEACHER_SHAPE, PatchDescription, read_tensors
from defects.models.features import Features
from defects.models.statistics import ChannelMoments
from defects.settings import Section
from defects.stamps import ABOUT_THE_INDEX, Stamp, differences, file_contents, join_differences, settings_but
from defects.training import checkpoint
from defects.training.loop import make_accelerator
from defects.training.tracking import write_metrics

POOLED_FEATURES = 1024  # features per layer, as in PatchCore
# Settings that the teacher does not depend on; the options are taken with their defaults.
NOT_THE_TEACHER = ABOUT_THE_INDEX | {
    "experiment",
    "output",
    "submissions",
    "data.image_size",
    "data.symmetries",
    "data.classes",
    "data.roi",
    "split",
    "model.name",
    "model.options.teacher",
    "model.options.autoencoder_width",
    "model.options.latent",
    "model.options.hard_quantile",
    "model.options.penalty",
    "model.options.penalty_gray",
    "model.options.distillation.save_every",
    "augment",
    "train.epochs",
    "train.batch_size",
    "train.accumulate",
    "train.steps",
    "train.least_steps",
    "train.optimizer",
    "train.lr",
    "train.milestones",
    "train.lr_factor",
    "train.weight_decay",
    "train.warmup_epochs",
    "train.clip_norm",
    "train.ema",
    "train.black_out",
    "train.paste",
    "train.synthetic",
    "train.workers",
    "train.inner_holdout",
    "train.select",
    "train.validate_every",
    "infer",
    "threshold",
    "claims",
    "ensemble",
    "tracking",
}


def distill(config: Config, table: pd.DataFrame, images: Path | None, restart: bool = False) -> Path:
    """Write the teacher that `model.options.teacher` names; resumes from last.pt beside it, skips if done.

    `table` is images.csv. `images` is any folder of images; None takes the data set's own training images of
    both classes, without their labels. Raises UserError for images that are not allowed and for a teacher of
    other settings.
    """
    if config.model.name != "efficientad":
        raise UserError(f"model.name={config.model.name} has no teacher: choose --model efficientad")
    options = check_options(config)
    if options.teacher is None:
        raise UserError("model.options.teacher is missing: name the file to write, such as output/teacher.pt")
    path = resolve(options.teacher)
    with locked(path.with_suffix(""), wait=False):
        paths, source = _list_sources(config, table, images)
        training = Distillation(config, options, paths, make_accelerator(config.train))
        if restart:
            path.unlink(missing_ok=True)
            training.last.unlink(missing_ok=True)
        if path.exists():
            training.check(path, read_tensors(path, "model.options.teacher", "--restart replaces it"))
            print(f"{path} is finished; --restart makes it again")
            return path
        training.fit()
        content = {name: getattr(options, name) for name in TEACHER_SHAPE}
        content |= {"teacher": training.teacher.cpu().state_dict(), "images": str(source)}
        checkpoint.save(path, content | {"fingerprint": training.fingerprint})
    print(f"wrote {path}")
    return path


class PatchFeatures(nn.Module):
    """Maps [B, C, h, w] of several layers, `widths` their channels -> [B, channels, h, w] on the finest grid.

    Each layer's 3 x 3 neighbourhoods, 9 C numbers in a row, are averaged down to 1,024 and all layers'
    together to `channels`. That is linear: one fixed convolution per layer does it.
    """

    def __init__(self, widths: list[int], channels: int):
        super().__init__()
        kernels = []
        for layer, width in enumerate(widths):
            together = torch.zeros(9 * width, len(widths), POOLED_FEATURES)
            together[:, layer] = functional.adaptive_avg_pool1d(torch.eye(9 * width), POOLED_FEATURES)
            kernel = functional.adaptive_avg_pool1d(together.flatten(1), channels)
            kernels.append(kernel.T.reshape(channels, width, 3, 3))
        self.kernels = nn.ParameterList(kernels).requires_grad_(False)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        height = max(layer.shape[2] for layer in maps)
        width = max(layer.shape[3] for layer in maps)
        total = 0
        for layer, kernel in zip(maps, self.kernels, strict=True):
            features = functional.conv2d(layer.float(), kernel, padding=1)
            total = total + functional.interpolate(features, size=(height, width), mode="bilinear")
        return total


class StepBatches:
    """Batches of (epoch, row) for the steps from `start` to `stop`, out of an endless stream of shuffles.

    A step's batch depends on the seed and its number alone, so a resumed run goes on with the same ones.
    """

    def __init__(self, images: int, batch_size: int, seed: int, start: int, stop: int):
        self.sampler = EpochSampler(images, seed)
        self.images = images
        self.batch_size = batch_size
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders = {}
        for step in range(self.start, self.stop):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, place = divmod(position, self.images)
                if epoch not in orders:
                    self.sampler.set_epoch(epoch)
                    orders = {epoch: list(self.sampler)}
                batch.append(orders[epoch][place])
            yield batch


@dataclass
class Distillation:
    """The training of one teacher on the images of `paths`, on one device."""

    config: Config
    options: Section
    paths: list[Path]
    accelerator: Accelerator
    history: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0

    def __post_init__(self):
        config = self.config
        options = self.options
        settings = options.distillation
        device = self.accelerator.device
        set_seed(config.train.seed)
        self.last = resolve(options.teacher).with_suffix("") / "last.pt"
        shape = {name: getattr(options, name) for name in TEACHER_SHAPE}
        self.teacher = PatchDescription(**shape, padding=True).to(device)
        size = 2 * settings.image_size, 2 * settings.image_size
        self.features = Features(config.model.backbone, settings.layers, size).to(device)
        self.pool = PatchFeatures(self.features.channels, options.channels).to(device)
        for network in (self.teacher, self.features):
            network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.teacher.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        rows = pd.DataFrame({"path": [str(path) for path in self.paths], "label": float("nan")})
        bits = config.data.bits
        self.dataset = ImageDataset(rows, Path(), size, settings.augment, config.train.seed, bits=bits)
        self.fingerprint = teacher_stamp(config, options, self.paths)

    def check(self, path: Path, content: dict[str, Any]) -> None:
        """UserError if `content` was made with other settings or images."""
        changes = differences(content.get("fingerprint"), self.fingerprint)
        if changes:
            raise UserError(
                f"{path} was distilled otherwise ({join_differences(changes)}): restore that, name another "
                "file (--set model.options.teacher=FILE), or replace it (src/distill.py --restart)"
            )

    def fit(self) -> None:
        """Train up to the configured steps; last.pt and metrics.jsonl are written every `save_every`."""
        self._start()
        settings = self.options.distillation
        losses = []
        loader = self._loader(self.step, settings.steps)
        bar = tqdm(loader, "distilling", settings.steps, initial=self.step, leave=False, disable=None)
        for batch in bar:
            losses.append(self._update(batch["image"]))
            self.step += 1
            if self.step % settings.save_every == 0 or self.step == settings.steps:
                self._save(torch.stack(losses).mean().item())
                losses = []

    def _start(self) -> None:
        """From last.pt, or with the mean and deviation of the features."""
        if self.last.exists():
            saved = read_tensors(self.last, "last.pt", "start anew with src/distill.py --restart")
            self.check(self.last, saved)
            self.teacher.load_state_dict(saved["teacher"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.history = saved["history"]
            self.step = saved["step"]
            self.mean = saved["mean"].to(self.accelerator.device)
            self.std = saved["std"].to(self.accelerator.device)
            write_metrics(self.last.with_name("metrics.jsonl"), self.history)
            print(f"resuming {self.last} after step {self.step}")
            return
        settings = self.options.distillation
        moments = ChannelMoments(self.options.channels)
        images = min(settings.statistics_images, len(self.paths))
        loader = self._loader(0, math.ceil(images / settings.batch_size))
        for batch in tqdm(loader, "measuring features", leave=False, disable=None):
            moments.add(self._target(self._images(batch["image"])))
        self.mean, self.std = (values.to(self.accelerator.device) for values in moments.result())

    def _loader(self, start: int, stop: int) -> DataLoader:
        train = self.config.train
        batch_size = self.options.distillation.batch_size
        return DataLoader(
            self.dataset,
            batch_sampler=StepBatches(len(self.dataset), batch_size, train.seed, start, stop),
            num_workers=train.workers,
            generator=torch.Generator().manual_seed(0),  # or the iterator would draw from the global one
        )

    def _images(self, images: torch.Tensor) -> torch.Tensor:
        return as_input(images.to(self.accelerator.device, non_blocking=True))

    @torch.no_grad()
    def _target(self, images: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            maps = self.features(images)
        return self.pool(maps)

    def _update(self, images: torch.Tensor) -> torch.Tensor:
        """One optimiser step; the loss, detached. The network sees half the backbone's resolution."""
        images = self._images(images)
        target = (self._target(images) - self.mean) / self.std
        with self.accelerator.autocast():
            described = self.teacher(functional.avg_pool2d(images, 2)).float()
        if described.shape != target.shape:  # a backbone whose finest layer has another stride than 8
            target = functional.interpolate(target, size=described.shape[2:], mode="bilinear")
        loss = functional.mse_loss(described, target)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _save(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"distillation diverged before step {self.step}, {self.last} is the last good state: lower "
                "model.options.distillation.lr"
            )
        self.history.append({"step": self.step, "loss": loss})
        content = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "step": self.step,
            "mean": self.mean,
            "std": self.std,
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(self.last, content)
        write_metrics(self.last.with_name("metrics.jsonl"), self.history)


def _list_sources(config: Config, table: pd.DataFrame, images: Path | None) -> tuple[list[Path], Path]:
    """The images, and where they come from.

    A folder of normal images of the data set itself would show the teacher which validation images are
    normal, so the data set's own images come all together, or not at all; test images never.
    """
    root = resolve(config.data.root).resolve()
    own = {(root / path).resolve(): split for path, split in zip(table["path"], table["split"], strict=True)}
    if images is None:
        print("note: the teacher sees the training images of all folds, though not their labels; name other")
        print("      images with --images for out-of-fold scores that owe nothing to this")
        return [path for path, split in own.items() if split == "train"], root
    if not images.is_dir():
        raise UserError(f"--images {images} is no folder: name one that holds images")
    refuse_external(config, "--images", images.absolute())
    paths = [path.resolve() for path in list_images(images)]
    if any(path in own for path in paths):
        raise UserError(
            f"--images {images} holds images of {config.data.name}, and its folders would give away labels: "
            "name other images, or leave --images out for all its training images, normal or not"
        )
    return paths, images.resolve()


def teacher_stamp(config: Config, options: Section, paths: list[Path]) -> Stamp:
    """What the teacher depends on."""
    settings = settings_but(config, NOT_THE_TEACHER | {"model.options"})
    settings |= settings_but(options, NOT_THE_TEACHER, "model.options.")
    names = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    images = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    files = file_contents(settings, config.data.root)
    return {"settings": settings, "files": files | {"images": images}}
