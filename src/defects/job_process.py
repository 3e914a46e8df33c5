"""Scripts of src/ as jobs, in processes of their own with logs. Neither torch nor pandas is imported."""

import os
import queue
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from defects.messages import UserError

CHILD = Path(__file__).with_name("job_child.py")
MOST_STARTS = 3  # of a script that is killed: it goes on where it stopped
# What launchers tell their processes, which a job must not take for its own.
LAUNCHER = re.compile(
    r"(ACCELERATE|TORCHELASTIC|OMPI_COMM|PMI|MV2_COMM)_.*|((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE)"
    r"|LOCAL_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)|FORK_LAUNCHED"
)


@dataclass(frozen=True)
class ScriptJob:
    name: str
    script: Path
    options: tuple[str, ...]
    log: Path

    def __str__(self) -> str:
        return self.name


class ScriptOutcome(NamedTuple):
    code: int  # of the script's exit
    seconds: float


def make_script_runner(threads: int | None, devices: Sequence[str]) -> Callable[[ScriptJob], ScriptOutcome]:
    """A function that runs jobs, several at a time if it is called by several threads.

    `threads` of a job, None for as many as it likes. Of `devices`, values of CUDA_VISIBLE_DEVICES, a job gets
    one that no other job has; without any it sees what this process sees.
    """
    idle = queue.SimpleQueue()
    for device in devices:
        idle.put(device)

    def run(job: ScriptJob) -> ScriptOutcome:
        environment = job_environment(threads)
        if not devices:
            return run_script(job, environment)
        device = idle.get()
        try:
            return run_script(job, environment | {"CUDA_VISIBLE_DEVICES": device})
        finally:
            idle.put(device)

    return run


def job_environment(threads: int | None) -> dict[str, str]:
    """This process's environment less what a launcher added."""
    environment = {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}
    if threads is not None and not environment.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def run_script(job: ScriptJob, environment: dict[str, str]) -> ScriptOutcome:
    """Run a script with its output in the log; one that is killed is started again.

    Raises UserError if this machine lacks the script.
    """
    if not job.script.is_file():
        raise UserError(
            f"{job.script} does not exist on {socket.gethostname()}: the machines of a sweep share the "
            "folders of this program, its data and its output, under one path"
        )
    start = time.perf_counter()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job.name} started, see {job.log}", flush=True)
    command = [sys.executable, str(CHILD), str(job.script), *job.options]
    with job.log.open("w", encoding="utf-8") as stream:
        for _ in range(MOST_STARTS):
            code = _run_once(command, stream.fileno(), environment)
            if code >= 0:
                break
            print(f"killed by signal {-code}", file=stream, flush=True)
    return ScriptOutcome(code, time.perf_counter() - start)


def _run_once(command: list[str], log: int, environment: dict[str, str]) -> int:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
    ) as process:
        return process.wait()
