"""What one GPU does with this repository: rates, fit times, where the time of a step goes, memory, resuming.

python benchmarks/gpu.py           one GPU, 8 minutes at most; prints, and writes output/gpu_benchmark.json
python benchmarks/gpu.py --tiny    the same steps with the smallest networks, for any machine

All images are generated and all weights random: speed does not depend on them. A part that fails or does not
fit into the time is printed as such, and the others go on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from throughput import benchmark_config, infer_whole, train_bare, train_whole, write_images
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config_schema import ROOT, Config  # noqa: E402
from defects.files import read_json, write_json  # noqa: E402

LIMIT_SECONDS = 420  # no part begins later
PART_SECONDS = 120  # of one process that a part starts
PROFILED_OPERATIONS = 10
RATE_REPEATS = 2  # after one that is not counted: the first allocations and kernel choices are slow


@dataclass
class Scale:
    """How large the parts are."""

    name: str
    size: int  # px, of the classifiers' images
    images: int  # of one epoch of a classifier; the loader's start is part of it
    classifiers: dict[str, str]  # names of timm by what they are printed as
    detectors: dict[str, list[str]]  # settings, by names in configs/models
    demo: str  # images of the generated data that the detectors are trained on
    data_size: int  # px, of the detectors' images


FULL_SCALE = Scale(
    "full",
    456,
    1536,
    {"EfficientNet-B5": "tf_efficientnet_b5", "EfficientNet-Lite0": "tf_efficientnet_lite0"},
    {
        "patchcore": ["model.backbone.weights=none"],
        "patch_head": ["model.backbone.weights=none"],
        "draem": ["train.epochs=2"],
    },
    "{normal: 1000, defect: 40, test: 400}",
    256,
)
TINY_SCALE = Scale(
    "tiny",
    64,
    16,
    {"test_efficientnet": "test_efficientnet"},
    {
        "patchcore_reduced": [
            "model.backbone={name: test_resnet, weights: none}",
            "model.options.layers=[layer2, layer3]",
        ]
    },
    "{normal: 24, defect: 6, test: 6}",
    64,
)


class Report:
    """Results in the order they were measured, printed as they come and kept in one file."""

    def __init__(self, path: Path, only: list[str]) -> None:
        self.path = path
        self.only = only
        self.started = time.monotonic()
        self.results: dict[str, Any] = {}

    def add(self, name: str, **values: Any) -> None:
        self.results[name] = values
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        print(f"{name}: {text}", flush=True)
        write_json(self.path, self.results)

    def run(self, name: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Add what `measure` returns; what goes wrong in it is a result of its own."""
        if self.only and name not in self.only:
            return
        elapsed = time.monotonic() - self.started
        if elapsed > LIMIT_SECONDS:
            self.add(name, skipped=f"{elapsed:.0f} s had passed of {LIMIT_SECONDS}")
            return
        try:
            self.add(name, **measure(*arguments))
        except Exception as error:  # a benchmark of many parts: the others are still wanted
            self.add(name, failed=f"{type(error).__name__}: {str(error)[:500]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the classifiers")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="names as they are printed")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu_benchmark.json")
    parser.add_argument("--train-to", type=int, metavar="EPOCH", help=argparse.SUPPRESS)  # of resume_across
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train_to:
        train_to(arguments.folder, arguments.train_to)
        return
    scale = TINY_SCALE if arguments.tiny else FULL_SCALE
    report = Report(arguments.output, arguments.only)
    report.add("machine", **describe_machine(), workers=arguments.workers, scale=scale.name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_images(folder, scale.images)
        for title, backbone in scale.classifiers.items():
            settings = [
                f"data.image_size=[{scale.size}, {scale.size}]",
                f"model.backbone={{name: {backbone}, weights: none}}",
                f"train.workers={arguments.workers}",
                f"train.batch_size={min(32, scale.images)}",
                *arguments.set,
            ]
            config = benchmark_config(folder, settings)
            report.run(title, measure_rates, config, rows)
            report.run(f"{title}, where the time goes", profile_training, config, rows)
        for model, settings in scale.detectors.items():
            report.run(model, measure_detector, model, folder, scale, arguments.workers, settings)
        report.run("resumed on another device", resume_across, folder / "resumed")
        report.run("exported classifier in ONNX Runtime", measure_runtime, folder, scale)
    elapsed = time.monotonic() - report.started
    report.add("whole benchmark", seconds=round(elapsed))
    print(f"wrote {report.path}")


def describe_machine() -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else "no CUDA GPU"
    return {"device": device, "torch": torch.__version__, "cpu_cores": os.cpu_count()}


def measure_rates(config: Config, rows: pd.DataFrame) -> dict[str, float]:
    """Images/s of training and inference, and the most memory that the GPU gave."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    rates: dict[str, float] = {
        "training_model_only_images_per_s": median_rate(train_bare, config, rows),
        "training_images_per_s": median_rate(train_whole, config, rows),
        "inference_images_per_s": median_rate(infer_whole, config, rows),
    }
    if torch.cuda.is_available():
        rates["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return rates


def median_rate(run: Callable[[Config, pd.DataFrame], float], config: Config, rows: pd.DataFrame) -> float:
    run(config, rows[: 2 * config.train.batch_size])
    seconds = [run(config, rows) for _ in range(RATE_REPEATS)]
    return round(len(rows) / float(np.median(seconds)), 1)


def profile_training(config: Config, rows: pd.DataFrame) -> dict[str, str]:
    """Shares of the time that operations take on the GPU, or on the CPU without one, in one epoch."""
    has_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * has_gpu
    with profile(activities=activities) as profiler:
        seconds = train_whole(config, rows[: 4 * config.train.batch_size])
    column = "self_device_time_total" if has_gpu else "self_cpu_time_total"
    operations = sorted(profiler.key_averages(), key=lambda row: getattr(row, column), reverse=True)
    operations = [row for row in operations if "#" not in row.key]  # spans that the optimiser and loader name
    if has_gpu:  # an operation of the CPU is listed with its kernels: kernels alone add up to the time
        operations = [row for row in operations if str(row.device_type).endswith("CUDA")]
    total = sum(getattr(row, column) for row in operations)
    shares = {row.key[:60]: f"{getattr(row, column) / total:.1%}" for row in operations[:PROFILED_OPERATIONS]}
    return {"busy_share_of_the_epoch": f"{total / 1e6 / seconds:.1%}", **shares}


def resume_across(folder: Path) -> dict[str, Any]:
    """Train a small classifier an epoch on the CPU, one on the GPU, one on the CPU; without it the first."""
    places = ["cpu", "cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    for epoch, place in enumerate(places, start=1):
        environment = dict(os.environ)
        if place == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, __file__, "--train-to", str(epoch), "--folder", str(folder)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=PART_SECONDS)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [round(json.loads(line)["train_loss"], 4) for line in lines]
    return {"devices": " -> ".join(places), "training_loss_by_epoch": losses}


def train_to(folder: Path, epoch: int) -> None:
    """Train on from what `folder` holds, to the end of `epoch`."""
    from defects.data.datasets import training_loader
    from defects.models import build_detector
    from defects.training.loop import Trainer, make_accelerator
    from defects.training.tracking import Stopwatch, Tracker

    folder.mkdir(exist_ok=True)
    rows = write_images(folder, 32)
    settings = [
        "data.image_size=[64, 64]",
        "model.backbone={name: test_efficientnet, weights: none}",
        "train.batch_size=8",
        "train.workers=0",
    ]
    config = benchmark_config(folder, settings)
    accelerator = make_accelerator(config.train)
    torch.manual_seed(0)  # the same weights in every run
    detector = build_detector(config)
    stamp = {"settings": {}, "files": {}}  # the same for all parts
    stopwatch = Stopwatch(folder / "costs.json")
    tracker = Tracker(config, "0", folder)
    trainer = Trainer(detector, config.train, epoch, folder, stamp, accelerator, tracker, stopwatch)
    if not trainer.resume():
        trainer.save_prepared()
    trainer.fit(training_loader(config, rows), None)


def measure_detector(
    model: str, folder: Path, scale: Scale, workers: int, settings: list[str]
) -> dict[str, Any]:
    """What train.py and infer.py write down about one fold of generated data."""
    places = [
        f"output={folder / 'output'}",
        f"submissions={folder / 'submissions'}",
        f"data.root={folder / 'demo'}",
        f"data.answers={folder / 'answers.csv'}",
    ]
    data = [f"data.demo={scale.demo}", f"data.image_size=[{scale.data_size}, {scale.data_size}]"]
    overrides = [*places, *data, "split.folds=2", f"train.workers={workers}", *settings]
    sets = [part for override in overrides for part in ("--set", override)]
    run_script("train.py", "--data", "demo", "--model", model, "--fold", "0", *sets)
    run_script("infer.py", f"demo_{model}", "--output", str(folder / "output"))
    return read_json(folder / "output" / f"demo_{model}" / "fold0" / "costs.json")


def run_script(name: str, *arguments: str) -> None:
    """A script of src/ in a process of its own. RuntimeError with its last line where it fails."""
    command = [sys.executable, str(ROOT / "src" / name), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PART_SECONDS)
    if finished.returncode:
        raise RuntimeError(f"{name}: {finished.stderr.strip().splitlines()[-1]}")


def measure_runtime(folder: Path, scale: Scale) -> dict[str, Any]:
    """Images/s of the exported first classifier on the GPU, where ONNX Runtime has a provider for it."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return {"not_measured": f"this onnxruntime offers {', '.join(providers)} only"}
    from defects.models import build_detector

    backbone = next(iter(scale.classifiers.values()))
    settings = [
        f"data.image_size=[{scale.size}, {scale.size}]",
        f"model.backbone={{name: {backbone}, weights: none}}",
    ]
    detector = build_detector(benchmark_config(folder, settings)).eval()
    images = torch.rand(32, 3, scale.size, scale.size)
    path = folder / "classifier.onnx"
    torch.onnx.export(detector, (images,), str(path), dynamo=True, input_names=["images"])
    session = onnxruntime.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    feed = {"images": images.numpy()}
    session.run(None, feed)
    start = time.perf_counter()
    for _ in range(5):
        session.run(None, feed)
    return {"images_per_s": round(5 * len(images) / (time.perf_counter() - start), 1)}


if __name__ == "__main__":
    main()
