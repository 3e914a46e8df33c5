"""Scripts in processes of their own, forked off one that has imported everything: it takes seconds."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest

from defects.config_schema import ROOT

LIMIT = 120  # seconds; what hangs would hang for longer


class Script:
    """A script of src/, or any other, that runs; as one of several processes if it is told which."""

    def __init__(self, folder: Path, script: Path, *arguments: object, **environment: str):
        self.output = folder / f"{script.stem}_{time.monotonic_ns()}.txt"
        words = [str(script), *map(str, arguments)]
        self.process = _context().Process(target=_run, args=(words, environment, self.output))
        self.process.start()

    def kill_when(self, ready: Callable[[], bool]) -> None:
        while self.process.is_alive() and not ready():
            time.sleep(0.01)
        self.process.kill()
        assert self.end()[0] != 0, "the run ended before it could be killed"

    def end(self) -> tuple[int, str]:
        """Exit code, and all that it has printed."""
        self.process.join(LIMIT)
        code = self.process.exitcode
        self.process.kill()
        assert code is not None, f"it takes longer than {LIMIT} s"
        return code, self.output.read_text(encoding="utf-8")


def start_two(folder: Path, script: Path, *arguments: object) -> list[Script]:
    """Two processes of a script that share its work, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    return [
        Script(folder, script, *arguments, **shared, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2")
        for rank in ("0", "1")
    ]


def _run(words: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    with output.open("w") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


@cache
def _context() -> multiprocessing.context.BaseContext:
    """Windows has no processes to fork from, and imports everything every time."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["defects.training.fold", "defects.training.scoring"])
    with pytest.MonkeyPatch.context() as patch:  # pytest's own paths are not handed on
        patch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
        forkserver.ensure_running()
    return context
