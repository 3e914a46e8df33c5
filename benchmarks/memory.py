"""Peak memory of src/infer.py on few and on many images: it must not grow with their number."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RUN_NAME = "memory_classifier"
CONFIG = """
output: {folder}/output
submissions: {folder}/submissions
experiment: memory_classifier
data:
  name: memory
  source: folders
  root: {folder}
  folders: {{normal: normal, abnormal: abnormal, test: test}}
  image_size: [64, 64]
split: {{folds: 2, duplicates: {{enabled: false}}}}
model: {{backbone: {{name: test_efficientnet, weights: none}}}}
train: {{epochs: 1}}
infer: {{tta: false}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    arguments = parser.parse_args()
    peaks = [peak(count) for count in arguments.images]
    for count, megabytes in zip(arguments.images, peaks, strict=True):
        print(f"{count:8,} test images: peak {megabytes:7.0f} MB")
    print(f"growth {peaks[-1] - peaks[0]:+.0f} MB")


def peak(count: int) -> float:
    """Highest resident memory in MB of infer.py and its worker processes together."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), count)
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(folder=Path(folder).as_posix()), encoding="utf-8")
        run("train.py", "--config", config).wait()
        process, highest = run("infer.py", RUN_NAME, "--output", Path(folder) / "output"), 0
        with tqdm(desc=f"{count} images", leave=False, disable=None):
            while process.poll() is None:
                highest = max(highest, resident(process.pid))
                time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"infer.py failed on {count} images")
    return highest / 1e6


def write_images(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for folder, number in (("normal", 20), ("abnormal", 6), ("test", count)):
        (root / folder).mkdir()
        for index in range(number):
            image = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
            (root / folder / f"{index}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


def run(script: str, *arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "src" / script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def resident(pid: int) -> int:
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # a worker that has just ended
            continue
    return total


if __name__ == "__main__":
    main()
