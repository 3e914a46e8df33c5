"""A copy of the repository with a small data set, and the stages run in it one after the other.

Where the system can fork, stages start in a process that has the libraries loaded already: imports take most
of the time of such small stages, and what happens during imports is not worth drilling a thousand times.
"""

import hashlib
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
TIMES = {"costs.json", ".lock"}  # measured times; locks are empty, and stay
STREAMS = ("stdout", "stderr")
LIMIT = 600  # seconds, of a stage that takes ten
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
  options: {map_loss: 1.0, global_pool: max}
train: {epochs: 5, lr: 1.0e-2, batch_size: 8, ema: 0.5, workers: 0}
infer: {batch_size: 8, tta: false}
"""

RUN_NAME = "drill_classifier"
RUN = f"output/{RUN_NAME}"
CONFIGURED = ["--config", "configs/drill.yaml"]

# In the order of the pipeline; a stage that is added here is drilled like the others.
STAGES = {
    "prepare": ["prepare.py", *CONFIGURED],
    "split": ["split.py", *CONFIGURED],
    "train": ["train.py", *CONFIGURED, "--fold", "all"],
    "infer": ["infer.py", RUN_NAME],
    "ensemble": ["ensemble.py", RUN_NAME],
    "report": ["report.py", RUN_NAME],
    "evaluate": ["evaluate.py"],
    "submit": ["submit.py", "--dry-run"],
    "export": ["export.py", RUN_NAME, "--formats", "torch", "onnx", "openvino"],
    "predict": [
        *("predict.py", f"{RUN}/fold0/export", "input/drill/test/images"),
        *("--output", f"{RUN}/predicted/table.csv", "--overlays", f"{RUN}/predicted"),
    ],
}


LIBRARIES = [
    *("accelerate", "albumentations", "cv2", "matplotlib.pyplot", "onnxruntime", "openvino", "pandas"),
    *(
        "scipy.stats",
        "segmentation_models_pytorch",
        "sklearn.ensemble",
        "sklearn.inspection",
        "timm",
        "torch",
    ),
]


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


def run(folder: Path, stage: str, prefix: list[str] = (), options: list[str] = ()) -> Ending:
    """The stage, or another script, started in `folder` as a user would, with a home of its own beside it."""
    command = [*prefix, sys.executable, *_command(stage), *options]
    environment = os.environ | _environment(folder)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return Ending(-1, "", f"hangs for {LIMIT} s")
    return Ending(done.returncode, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))


def start(folder: Path, stage: str) -> BaseProcess:
    """A process of the stage in `folder`, with the libraries loaded."""
    os.environ.update(QUIET)  # before the libraries look
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([name for name in LIBRARIES if find_spec(name.partition(".")[0])])
    process = context.Process(target=_become, args=(folder, _command(stage), _environment(folder)))
    process.start()
    return process


def finish(process: BaseProcess, folder: Path) -> Ending:
    """Wait for it; a stage that hangs is killed."""
    process.join(LIMIT)
    kill(process)
    return Ending(process.exitcode, *(_said(folder, name).read_text("utf-8", "replace") for name in STREAMS))


def run_warm(folder: Path, stage: str) -> Ending:
    return finish(start(folder, stage), folder)


def kill(process: BaseProcess) -> None:
    """The process and all that it started, at once and without notice."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.join()


def _command(stage: str) -> list[str]:
    script, *options = STAGES.get(stage, [f"{stage}.py", RUN_NAME])
    return [f"src/{script}", *options]


def _environment(folder: Path) -> dict[str, str]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    return QUIET | dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(home))


def _said(folder: Path, name: str) -> Path:
    """What a process printed; not in `folder`, whose disk may be full."""
    return folder.with_name(f"{folder.name}.{name}")


def _become(folder: Path, command: list[str], environment: dict[str, str]) -> None:
    """In the process: be the script."""
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None  # it was settled on before
    for number, name in enumerate(STREAMS, 1):
        os.dup2(os.open(_said(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = command
    sys.path.insert(0, str(folder / "src"))
    runpy.run_path(command[0], run_name="__main__")


def references(folder: Path, stages: list[str]) -> dict[str, Reference]:
    """Run all stages up to the last of `stages` undisturbed; what was before and after each of them."""
    found, before = {}, new_copy(folder / "0")
    run_warm(before, "nothing")  # the libraries are loaded before anything is timed
    for number, stage in enumerate(STAGES, 1):
        after = folder / str(number)
        shutil.copytree(before, after)
        begin = time.perf_counter()
        ending = run_warm(after, stage)
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
        if path.is_file() and path.name not in TIMES and not _is_unfinished(path)
    }


def _is_unfinished(path: Path) -> bool:
    """Whether a file is, or lies in, what a killed process left unfinished, which is removed after a day."""
    return any(each.suffix == ".part" for each in (path, *path.parents))


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
