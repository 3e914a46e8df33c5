"""End-to-end images/s of training and inference as a share of the bare model's, alternating in one run.

EfficientNet-B0 at 256 px from JPEG files of 512 px, the label-preserving copies and augmentations on. Another
network and size: --set model.backbone.name=tf_efficientnet_b5 --set data.image_size=[456,456]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config import load_config  # noqa: E402
from defects.config_schema import ROOT, Config  # noqa: E402
from defects.data.datasets import training_loader  # noqa: E402
from defects.models import build_detector  # noqa: E402
from defects.training.loop import Trainer, TrainingStep, make_accelerator  # noqa: E402
from defects.training.scoring import score_table  # noqa: E402
from defects.training.tracking import (
    Stopwatch,  # noqa: E402
    Tracker,  # noqa: E402
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"train.workers={arguments.workers}", *arguments.set]
        config = benchmark_config(Path(folder), sets)
        rows = write_images(Path(folder), arguments.images)
        print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}")
        report("training", config, arguments.repeats, train_bare, train_whole, rows)
        report("inference", config, arguments.repeats, infer_bare, infer_whole, rows)


def benchmark_config(folder: Path, sets: list[str]) -> Config:
    """EfficientNet-B0 on the images of `folder`, with the augmentation of the competition's config."""
    fixed = [
        f"data.root={folder}",
        "data.image_size=[256, 256]",
        "model.backbone={name: efficientnet_b0, weights: none}",
        "train.epochs=1",
        "train.ema=null",
        "infer.tta=false",
    ]
    return load_config(ROOT / "configs" / "defect_normal.yaml", [*fixed, *sets])


def write_images(folder: Path, count: int) -> pd.DataFrame:
    """Rows (image_id, path, label, angle, flip) of generated 512 px JPEG files."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        noise = cv2.GaussianBlur(rng.normal(size=(512, 512, 3)).astype(np.float32), (0, 0), 2)
        image = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        name = f"{index}.jpg"
        (folder / name).write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
        rows.append((name, name, index % 2, 10.0 * (index % 36), "horizontal" if index % 3 else "none"))
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "angle", "flip"])


def report(
    name: str, config: Config, repeats: int, bare: Callable, whole: Callable, rows: pd.DataFrame
) -> None:
    """Time both alternately, so that a noisy neighbour hits both; print medians and their ratio."""
    for run in (bare, whole):  # untimed: the first allocations and kernel choices are slow
        timed(run, config, rows[:32])
    rates = []
    for repeat in tqdm(range(repeats), name, leave=False, disable=None):
        pair = {run: timed(run, config, rows) for run in ((bare, whole), (whole, bare))[repeat % 2]}
        rates.append([pair[bare], pair[whole]])
    only, complete = np.median(rates, axis=0)
    ratio = np.median([row[1] / row[0] for row in rates])
    print(
        f"{name:10} model only {only:6.1f} images/s, end to end {complete:6.1f} images/s, ratio {ratio:.3f}"
    )


def timed(run: Callable, config: Config, rows: pd.DataFrame) -> float:
    return len(rows) / run(config, rows)


def train_bare(config: Config, rows: pd.DataFrame) -> float:
    """Seconds of the optimiser steps of one epoch on a batch that is already in memory."""
    accelerator = make_accelerator(config.train)
    detector = build_detector(config).to(accelerator.device, memory_format=torch.channels_last).train()
    step, optimizer = TrainingStep(detector), torch.optim.AdamW(detector.parameters(), lr=1e-4)
    batch = memory_batch(config.train.batch_size, config, accelerator.device)
    start = time.perf_counter()
    for _ in range(len(rows) // config.train.batch_size):
        with accelerator.autocast():
            loss = step(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return time.perf_counter() - start


def train_whole(config: Config, rows: pd.DataFrame) -> float:
    """Seconds of one epoch by the real loader and the real loop, checkpoint included."""
    detector, accelerator = build_detector(config), make_accelerator(config.train)
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(config, "0", Path(folder))
        stopwatch = Stopwatch(Path(folder) / "costs.json")
        trainer = Trainer(detector, config.train, 1, Path(folder), {}, accelerator, tracker, stopwatch)
        loader = training_loader(config, rows)
        start = time.perf_counter()
        trainer.fit(loader, None)
        return time.perf_counter() - start


@torch.inference_mode()
def infer_bare(config: Config, rows: pd.DataFrame) -> float:
    accelerator = make_accelerator(config.train)
    detector = build_detector(config).to(accelerator.device).eval()
    size = config.infer.batch_size
    batch = memory_batch(size, config, accelerator.device)["image"]
    start = time.perf_counter()
    for first in range(0, len(rows), size):
        with accelerator.autocast():
            detector(batch[: len(rows) - first])[0].cpu()
    return time.perf_counter() - start


def infer_whole(config: Config, rows: pd.DataFrame) -> float:
    detector, accelerator = build_detector(config), make_accelerator(config.train)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        score_table(detector, config, rows, "0", accelerator, Path(folder) / "maps.npz")
        return time.perf_counter() - start


def memory_batch(size: int, config: Config, device: torch.device) -> dict[str, torch.Tensor]:
    images = torch.rand(size, 3, *config.data.image_size, device=device)
    return {
        "image": images.contiguous(memory_format=torch.channels_last),
        "label": torch.ones(size, 1, device=device),
    }


if __name__ == "__main__":
    main()
