"""A copy of the repository with a small data set, and the stages run in it one after the other."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"costs.json", ".lock"}  # measured times; locks are empty, and stay
LIMIT = 300  # seconds, of a stage that takes ten
CONFIG = """
experiment: drill_classifier
data:
  name: drill
  source: demo
  root: input/drill
  answers: input/drill_answers.csv
  sample_submission: test/sample_submission.csv
  image_size: [64, 64]
  demo: {normal: 60, defect: 10, test: 40}
  kaggle: {competition: drill}
split: {folds: 2}
model:
  name: classifier
  backbone: {name: test_efficientnet, weights: none}
  options: {map_loss: 1.0}
train: {epochs: 3, batch_size: 16, ema: 0.9, save_every: 2, workers: 0}
infer: {batch_size: 8}
"""

# In the order of the pipeline; a stage that is added here is drilled like the others.
STAGES = {
    "prepare": ["prepare.py"],
    "split": ["split.py"],
    "train": ["train.py", "--fold", "all"],
    "infer": ["infer.py"],
    "ensemble": ["ensemble.py"],
    "report": ["report.py"],
    "evaluate": ["evaluate.py"],
    "submit": ["submit.py", "--dry-run"],
}


class Ending(NamedTuple):
    """How a stage ended; the code is negative after a signal."""

    code: int
    stdout: str
    stderr: str


class Reference(NamedTuple):
    """Undisturbed runs: a copy of everything before and after a stage, and the stage's seconds."""

    before: Path
    after: Path
    seconds: float


def new_copy(folder: Path) -> Path:
    """The program, its configs and one for the drills; input, output and submissions come with the stages."""
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "configs" / "drill.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def start(folder: Path, stage: str, prefix: list[str] = (), options: list[str] = ()) -> subprocess.Popen:
    """A process of the stage, or of another script, in `folder`, with a home of its own beside it."""
    script, *own = STAGES.get(stage, [f"{stage}.py"])
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    places = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(home))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [*prefix, sys.executable, f"src/{script}", "--config", "configs/drill.yaml", *own, *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=os.environ | places | quiet, **pipes)


def finish(process: subprocess.Popen) -> Ending:
    """Wait for it; a stage that hangs counts as killed by this program."""
    try:
        streams = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        kill(process)
        streams = process.communicate()
    return Ending(process.returncode, *(text.decode("utf-8", "replace") for text in streams))


def run(folder: Path, stage: str, prefix: list[str] = (), options: list[str] = ()) -> Ending:
    return finish(start(folder, stage, prefix, options))


def kill(process: subprocess.Popen) -> None:
    """The process and all that it started, at once and without notice."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def references(folder: Path, stages: list[str]) -> dict[str, Reference]:
    """Run all stages up to the last of `stages` undisturbed; what was before and after each of them."""
    found, before = {}, new_copy(folder / "0")
    for number, stage in enumerate(STAGES, 1):
        after = folder / str(number)
        shutil.copytree(before, after)
        begin = time.perf_counter()
        ending = run(after, stage)
        if ending.code:
            raise SystemExit(f"{stage} failed undisturbed: {ending.stderr}")
        found[stage] = Reference(before, after, time.perf_counter() - begin)
        print(f"{stage}: {found[stage].seconds:.1f} s undisturbed", flush=True)
        before = after
        if set(stages) <= set(found):
            break
    return {stage: found[stage] for stage in stages}


@contextmanager
def copy_of(folder: Path, place: Path) -> Iterator[Path]:
    """A copy in `place`, gone in the end."""
    shutil.copytree(folder, place, dirs_exist_ok=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def contents(folder: Path) -> dict[str, str]:
    """sha256 by relative path of all that the stages make, without the measured times."""
    made = [path for top in ("input", "output", "submissions") for path in (folder / top).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in made
        if path.is_file() and path.name not in TIMES
    }


def differences(folder: Path, expected: Path) -> list[str]:
    """Files of `folder` that are missing, other than expected, or should not be there."""
    found, wanted = contents(folder), contents(expected)
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name} is left over" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name] != wanted[name] and not _same_tensors(folder / name, expected / name):
            lines.append(f"{name} differs")
    return lines


def _same_tensors(one: Path, other: Path) -> bool:
    """Checkpoints of equal values may differ in which equal strings their pickles share."""
    if one.suffix != ".pt":
        return False
    return _equal(*(torch.load(path, map_location="cpu", weights_only=True) for path in (one, other)))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other
