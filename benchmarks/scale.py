"""Time and memory of prepare, split, train and infer on many tiny images, and what a million would take.

python benchmarks/scale.py --folder WORK --images 100000 200000 400000

Half of the images are for training, 60 of these are defective, and every hundredth shows the scene of the one
before. What is measured is kept in WORK/scale.json: the same command goes on where it was stopped.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
from grouping import photograph, texture
from scipy.optimize import nnls
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
DEFECTS = 60
SIBLINGS = 0.01  # share of the normal training images that show the scene of the one before
SIDE = 32  # pixels
STAGES = ["prepare", "split", "train", "infer"]
MILLION, UNIT = 1_000_000, 100_000
POWERS = ["", " n"]
COLUMNS = {
    "seconds": ("seconds", 10),
    "processor": ("processor, s", 14),
    "memory": ("memory, MB", 12),
    "files": ("files, MB", 11),
}
RUN_NAME = "scale_convae"
CONFIG = """
output: {folder}/output
submissions: {folder}/submissions
experiment: scale_convae
data:
  name: scale
  source: folders
  root: {folder}
  folders: {{normal: normal, abnormal: abnormal, test: test}}
  image_size: [32, 32]
split: {{folds: 10}}
model: {{name: convae, options: {{width: 4, error: l2, smoothing: 1.0}}}}
train: {{epochs: 0, inner_holdout: 0.1}}
infer: {{tta: false}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for images and results; 2 GB for 400,000")
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 200_000, 400_000])
    arguments = parser.parse_args()
    kept = arguments.folder / "scale.json"
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    for images in arguments.images:
        work = arguments.folder / str(images)
        for stage in STAGES:
            if stage not in measured.setdefault(str(images), {}):
                measured[str(images)][stage] = measure(stage, work, images)
                kept.write_text(json.dumps(measured, indent=2))
        shutil.rmtree(work, ignore_errors=True)
    print_table(measured)
    print_growth(measured)


def measure(stage: str, work: Path, images: int) -> dict[str, float]:
    """Of one script: seconds, processor seconds, and peaks in MB of it and its children together.

    `memory` must be held, `files` are mapped pages that the system drops when it needs them.
    """
    planted = generate(work, images)
    config = work / "config.yaml"
    config.write_text(CONFIG.format(folder=work.as_posix()), encoding="utf-8")
    arguments = ["--config", config]
    if stage == "infer":
        arguments = [RUN_NAME, "--output", work / "output"]
    command = [sys.executable, ROOT / "src" / f"{stage}.py", *arguments]
    start, busy, peaks = time.perf_counter(), processor_seconds(), np.zeros(2)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with tqdm(desc=f"{stage}, {images} images", leave=False, disable=None):
        while process.poll() is None:
            peaks = np.maximum(peaks, resident(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{stage}.py failed on {images} images")
    found = {"seconds": time.perf_counter() - start, "processor": processor_seconds() - busy}
    found |= dict(zip(["memory", "files"], peaks / 1e6, strict=True))
    return found | (recall(work, planted) if stage == "split" else {})


def generate(work: Path, images: int) -> list[tuple[str, str]]:
    """Images in folders of 1,000 and, as ids, the pairs of training images that show one scene."""
    kept = work / "planted.json"
    if not kept.exists():
        normal, test = images // 2 - DEFECTS, images - images // 2
        rng, planted = np.random.default_rng(images), []
        with tqdm(total=images, desc="generating", leave=False, disable=None) as progress:
            for folder, count in (("normal", normal), ("abnormal", DEFECTS), ("test", test)):
                planted += write_folder(work, folder, count, rng, progress)
        kept.write_text(json.dumps(planted))
    return json.loads(kept.read_text())


def write_folder(
    work: Path, folder: str, count: int, rng: np.random.Generator, progress: tqdm
) -> list[tuple[str, str]]:
    scene, planted, previous = None, [], None
    for index in range(count):
        again = folder == "normal" and index % round(1 / SIBLINGS) == 1
        scene = scene if again else texture(rng)
        image = cv2.resize(photograph(scene, rng), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if folder == "abnormal":
            cv2.circle(image, tuple(map(int, rng.integers(4, SIDE - 4, 2))), 3, 255, -1)
        name = f"{folder}/{index // 1000:04d}/{index:07d}.png"
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        planted += [(previous, name)] if again else []
        previous = name
        progress.update()
    return planted


def recall(work: Path, planted: list[tuple[str, str]]) -> dict[str, float]:
    """Share of the planted pairs that split.py found, and how many others."""
    pairs = pd.read_csv(work / "output" / "scale" / "pairs.csv", dtype=str)
    found = {frozenset(pair) for pair in zip(pairs["i"], pairs["j"], strict=True)}
    right = found & {frozenset(pair) for pair in planted}
    return {"recall": len(right) / max(1, len(planted)), "false": len(found - right)}


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident(pid: int) -> tuple[int, int]:
    """Bytes of a process and its children now: held, and mapped from files."""
    held = mapped = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            found = process.memory_info()
        except psutil.NoSuchProcess:  # one that has just ended
            continue
        held, mapped = held + found.rss - found.shared, mapped + found.shared
    return held, mapped


def print_table(measured: dict[str, dict]) -> None:
    print(f"{'stage':8}{'images':>10}" + "".join(f"{text:>{width}}" for text, width in COLUMNS.values()))
    for stage in STAGES:
        for images, stages in measured.items():
            figures = [f"{stages[stage][key]:{width},.0f}" for key, (_, width) in COLUMNS.items()]
            print(f"{stage:8}{int(images):10,}{''.join(figures)}")
    for images, stages in measured.items():
        found = stages["split"]
        print(
            f"{int(images):,} images: {found['recall']:.2%} of planted pairs found, {found['false']} others"
        )


def print_growth(measured: dict[str, dict]) -> None:
    """Every stage as a + b n, with the least relative error; split.py compares all pairs of fewer images."""
    sizes = np.array([int(images) for images in measured]) / UNIT
    print(f"growth over n, in {UNIT:,} images")
    for stage in STAGES:
        for key in ("seconds", "processor", "memory"):
            values = np.array([stages[stage][key] for stages in measured.values()])
            powers = np.arange(len(POWERS))
            terms = sizes[:, None] ** powers
            parts, _ = nnls(terms / values[:, None], np.ones(len(values)))
            off = np.abs(terms @ parts / values - 1).max()
            text = " + ".join(f"{part:.3g}{POWERS[power]}" for part, power in zip(parts, powers, strict=True))
            million = parts @ (MILLION / UNIT) ** powers
            print(f"{stage:8}{COLUMNS[key][0]:14}{text:32} (within {off:.0%}); a million: {million:,.0f}")


if __name__ == "__main__":
    main()
