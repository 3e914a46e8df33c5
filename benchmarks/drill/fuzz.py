"""Fuzz: broken input of every kind ends well or in one UserError that names the file.

The inputs are read in a child process, so that one which kills it or hangs is counted, and the next
goes on.
"""

import multiprocessing
import os
import re
import shutil
import sys
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from drill.mutations import mutate
from drill.stages import STAGES, references
from drill.tally import Tally

SECONDS = 10  # for one input
START = 120  # seconds for the child's imports
IMAGES = {".jpg", ".png", ".bmp", ".tiff", ".webp", ".avif", ".gif", ".jp2", ".pnm", ".pam", ".ras"}
MEGABYTES = 2_500  # above what the child held before the input
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux tells the peak of each input


class Answer(NamedTuple):
    """`fault` is empty when all is well; `megabytes` the peak above what was held before."""

    fault: str
    accepted: bool = False
    noisy: bool = False  # a decoder written in C printed a line of its own
    megabytes: float = 0.0


def drill(folder: Path, seed: int, tries: int, only: str | None) -> list[Tally]:
    last = references(folder, list(STAGES)[-1:])[list(STAGES)[-1]].after
    child, found = Child(last), []
    for name in child.names:
        if only and only not in name:
            continue
        tally, answers = Tally("fuzz", name), []
        for index in tqdm(range(tries), name, leave=False, disable=None):
            answer = child.ask(name, index, seed)
            tally.add([f"try {index}: {answer.fault}"] if answer.fault else [], [])
            answers.append(answer)
        accepted, noisy = (sum(getattr(each, what) for each in answers) for what in ("accepted", "noisy"))
        tally.note = f"{accepted} accepted, {noisy} refused with a line of the decoder's own, "
        tally.note += f"at most {max(each.megabytes for each in answers):.0f} MB"
        found.append(tally)
        print(f"{name}: {tries} tries, {len(tally.faults)} faults, {tally.note}", flush=True)
    child.end()
    return found


class Child:
    """The process that reads the inputs; a new one takes over where one ends or hangs."""

    def __init__(self, folder: Path):
        self.original = folder
        self._start()

    def _start(self) -> None:
        self.folder = self.original.with_name("fuzzed")
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.original, self.folder)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.folder), daemon=True)
        self.process.start()
        theirs.close()
        if not self.connection.poll(START):
            raise SystemExit("the process that reads the inputs does not start")
        self.names: list[str] = self.connection.recv()

    def ask(self, target: str, index: int, seed: int) -> Answer:
        self.connection.send((target, index, seed))
        hung = not self.connection.poll(SECONDS)
        try:
            if not hung:
                return self.connection.recv()
        except EOFError:
            self.process.join()
        self.end()
        code = self.process.exitcode
        self._start()
        return Answer(f"hangs for {SECONDS} s" if hung else f"the process died ({code})")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def work(connection: Connection, folder: Path) -> None:
    """In the child: read the inputs that are asked for, with the program's copy in `folder`."""
    sys.path.insert(0, str(folder / "src"))
    os.chdir(folder)
    import_module("defects")  # before anything loads OpenCV, as in the scripts
    targets = import_module("drill.targets")

    noise = _caught_stderr(folder)
    config = targets.load_config(folder / "configs" / "drill.yaml")
    originals = {}
    connection.send(list(targets.TARGETS))
    while True:
        name, index, seed = connection.recv()
        target = targets.TARGETS[name]
        path = folder / target.path
        if name not in originals:
            originals = {name: target.seeds(folder) or [path.read_bytes()]}
        number = list(targets.TARGETS).index(name)
        content = mutate(originals[name], np.random.default_rng([seed, number, index]))
        before = path.read_bytes() if path.exists() else None
        try:
            connection.send(_answer(target, path, content, config, noise))
        finally:
            path.unlink() if before is None else path.write_bytes(before)


def _answer(target, path: Path, content: bytes, config, noise: Path) -> Answer:
    path.write_bytes(content)
    held, said = _reset_peak(), noise.stat().st_size
    fault, accepted = _outcome(target, path, config)
    megabytes = _peak() - held
    if megabytes > MEGABYTES:
        fault = fault or f"takes {megabytes:.0f} MB"
    text = noise.read_bytes()[said:].decode("utf-8", "replace")
    noisy = bool(text.strip()) and not accepted  # of what is taken a decoder may say how damaged it is
    if noisy and path.suffix not in IMAGES:
        fault = fault or f"prints past the one line: {' '.join(text.split())[:150]}"
    return Answer(fault, accepted, noisy, megabytes)


def _outcome(target, path: Path, config) -> tuple[str, bool]:
    """What is wrong, and whether the input was taken."""
    from defects.messages import UserError

    try:
        target.check(path, config)
    except UserError as error:
        wanted = path.name if target.names is None else target.names
        return ("" if wanted in str(error) else f"the message names no file: {error}"), False
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "defects" in frame.filename
        ]
        return f"{type(error).__name__} at {' '.join(own[-1:])}: {str(error)[:150]!r}", False
    return "", True


def _caught_stderr(folder: Path) -> Path:
    """Decoders written in C print to the descriptor itself."""
    path = folder.with_name("stderr.txt")
    stream = path.open("wb")
    os.dup2(stream.fileno(), 2)
    return path


def _reset_peak() -> float:
    if PEAK.exists():
        PEAK.write_text("5")
    return _peak()


def _peak() -> float:
    """Megabytes; 0 where the system does not tell."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) / 1000 if found else 0.0
