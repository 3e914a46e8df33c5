"""Peak memory of DFR's preparation, the principal components of all images, on few and on many images.

By default the light layers of VGG19 at 64 pixels, which keep 2 cores busy for minutes; `--layers all
--size 256` is the published setting. Random weights and images: memory does not depend on them.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from defects.config import load_config  # noqa: E402
from defects.models import Batch, build_detector  # noqa: E402

LIGHT = "[features.1, features.6, features.11, features.15, features.20]"
BATCH = 8


class Generated:
    """`images` pictures of noise, made anew whenever they are asked for."""

    def __init__(self, images: int, size: int):
        self.images, self.size = images, size

    def __len__(self) -> int:
        return -(-self.images // BATCH)

    def __iter__(self) -> Iterator[Batch]:
        for start in tqdm(range(0, self.images, BATCH), f"{self.images} images", leave=False, disable=None):
            yield {"image": torch.rand(min(BATCH, self.images - start), 3, self.size, self.size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2_000])
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels")
    parser.add_argument("--layers", choices=["light", "all"], default="light")
    parser.add_argument("--measure", type=int, help="this many images, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.size, arguments.layers))
        return
    peaks = [measure_apart(count, arguments) for count in arguments.images]
    print(f"growth {peaks[-1] - peaks[0]:+.0f} MB")


def measure_apart(count: int, arguments: argparse.Namespace) -> float:
    """Peak of a process of its own, in MB."""
    options = ["--measure", count, "--size", arguments.size, "--layers", arguments.layers]
    command = [sys.executable, __file__, *map(str, options)]
    start = time.perf_counter()
    peak = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{count:8,} images: peak {peak:7.0f} MB, {time.perf_counter() - start:6.0f} s")
    return peak


def measure(count: int, size: int, layers: str) -> float:
    overrides = [f"data.image_size=[{size}, {size}]", "model.backbone.weights=none"]
    if layers == "light":
        overrides.append(f"model.options.layers={LIGHT}")
    detector = build_detector(load_config(ROOT / "configs" / "demo.yaml", overrides, model="dfr")).eval()

    @torch.no_grad()
    def prepare() -> None:
        detector.prepare(Generated(count, size))

    return peak_during(prepare)


def peak_during(work: Callable[[], None]) -> float:
    """Highest resident memory in MB."""
    gc.collect()  # the unused head of the network would hide what is measured
    process, highest = psutil.Process(), 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        while not running.done():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.02)
    running.result()
    return highest / 1e6


if __name__ == "__main__":
    main()
