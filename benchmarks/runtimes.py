"""Images/s of exported models beside PyTorch, of predict.py beside its runtime, and its start-up.

EfficientNet-B0, and PatchCore on EfficientNet-Lite0 features, both at 256 px, with random weights: speed does
not depend on them. Everything that is compared takes turns, round by round.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from throughput import write_images

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects import stages  # noqa: E402
from defects.config import load_config  # noqa: E402
from defects.config_schema import ROOT  # noqa: E402
from defects.deploy.exporter import EXPORT_FORMATS, export  # noqa: E402
from defects.deploy.model import ExportedModel, load_model  # noqa: E402
from defects.deploy.prediction import predict, read_frame  # noqa: E402
from defects.runs import Run  # noqa: E402
from defects.training.fold import train_fold  # noqa: E402

BATCHES = (1, 32)
DATA = ["data.image_size=[256, 256]", "data.demo={normal: 60, defect: 10, test: 10}", "split.folds=2"]
SETTINGS = {
    "EfficientNet-B0": (
        None,
        ["train.epochs=0"],
        "efficientnet_b0",
    ),
    "PatchCore": ("patchcore_reduced", ["model.options.ratio=0.15"], "tf_efficientnet_lite0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="JPEG files of 512 px, scored in each round")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in write_images(Path(folder), arguments.images)["path"]]
        for name, settings in SETTINGS.items():
            models = exported(Path(folder) / name, *settings)
            images = np.stack([read_frame(path, models["torch"].meta).image for path in files])
            for batch in BATCHES:
                compare_runtimes(f"{name}, batch {batch}", models, images, batch, arguments.rounds)
            compare_pipeline(name, models["openvino"], files, images, arguments.rounds)
            start_up(name, models["openvino"], files[0], arguments.rounds)


def exported(
    folder: Path, detector: str | None, overrides: list[str], backbone: str
) -> dict[str, ExportedModel]:
    """Every format of a detector that has learnt nothing."""
    sets = [f"output={folder}", f"data.root={folder / 'data'}", f"data.answers={folder / 'key.csv'}"]
    sets += [*DATA, *overrides, f"model.backbone={{name: {backbone}, weights: none}}", "infer.tta=false"]
    config = load_config(ROOT / "configs" / "demo.yaml", sets, model=detector)
    tables = stages.ensure_tables(config)
    train_fold(config, "0", tables.folds)
    written, _ = export(Run(config), tables, "0", list(EXPORT_FORMATS), 16)
    return {name: load_model(written / file) for name, (file, _) in EXPORT_FORMATS.items()}


def compare_runtimes(
    name: str, models: dict[str, ExportedModel], images: np.ndarray, batch: int, rounds: int
) -> None:
    rates = {each: [] for each in models}
    for model in models.values():
        model(images[:batch])  # untimed: the first is slower
    for _ in range(rounds):
        for each, model in models.items():
            rates[each].append(bare(model, images, batch))
    for each, found in rates.items():
        ratio = np.median(np.divide(found, rates["torch"]))
        print(f"{name:28} {each:14} {np.median(found):7.1f} images/s, {ratio:.2f} of PyTorch's")


def bare(model: ExportedModel, images: np.ndarray, batch: int) -> float:
    """Images/s of the runtime on images in memory."""
    start = time.perf_counter()
    for first in range(0, len(images), batch):
        model(images[first : first + batch])
    return len(images) / (time.perf_counter() - start)


def compare_pipeline(
    name: str, model: ExportedModel, files: list[Path], images: np.ndarray, rounds: int
) -> None:
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        count = sum(1 for _ in predict(model, files, 8))
        rates.append((count / (time.perf_counter() - start), bare(model, images, 8)))
    whole, only = np.median(rates, axis=0)
    ratio = np.median([each[0] / each[1] for each in rates])
    print(f"{name:28} from files {whole:.1f} images/s, runtime alone {only:.1f}: {ratio:.2f}")


def start_up(name: str, model: ExportedModel, image: Path, rounds: int) -> None:
    command, seconds = [sys.executable, ROOT / "src" / "predict.py", model.path, image], []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    print(f"{name:28} predict.py, one image: {np.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
