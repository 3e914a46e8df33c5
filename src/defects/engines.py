"""Many independent jobs: in turn, in threads or processes of this machine, or on a Ray cluster.

Jobs must be repeatable: one whose process is lost is run again. What runs them is made by `make_worker`,
which is called once in every process and returns a function of a job; processes and Ray have to pickle it.
"""

import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from defects.messages import UserError
from defects.versions import CLUSTER_REQUIREMENTS, check_versions

MOST_LOSSES = 3  # processes that end one after the other, without a job done in between
CONNECTION_SECONDS = 20  # for a Ray cluster to answer
CHECK_SECONDS = 10  # without a result, after which a cluster is asked whether it is there
INSTALL_CLUSTER = "pip install -r requirements-cluster.txt"

RunJob = Callable[[Any], Any]
MakeWorker = Callable[[], RunJob]


class Engine(ABC):
    """Takes jobs and yields their results; a context manager, at whose end nothing runs any more."""

    @abstractmethod
    def submit(self, job: Any) -> None:
        """Have a job done; may also be called while results are read."""

    @abstractmethod
    def results(self) -> Iterator[tuple[Any, Any]]:
        """(job, result) of every job as it is done, in any order. Raises what a job raises."""

    @abstractmethod
    def close(self) -> None:
        """Forget the jobs that have not begun."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InTurn(Engine):
    """One job after the other, in this process."""

    def __init__(self, make_worker: MakeWorker):
        self._run_job = make_worker()
        self._jobs: deque[Any] = deque()

    def submit(self, job: Any) -> None:
        self._jobs.append(job)

    def results(self) -> Iterator[tuple[Any, Any]]:
        while self._jobs:
            job = self._jobs.popleft()
            yield job, self._run_job(job)

    def close(self) -> None:
        self._jobs.clear()


class _Pool(Engine):
    """Several jobs at a time by one of concurrent.futures' executors."""

    def __init__(self) -> None:
        self._executor = self._start_executor()
        self._jobs: dict[Future, Any] = {}
        self._finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._losses = 0  # since a job was done

    @abstractmethod
    def _start_executor(self) -> Executor: ...

    @abstractmethod
    def _submit_to(self, executor: Executor, job: Any) -> Future: ...

    def submit(self, job: Any) -> None:
        try:
            future = self._submit_to(self._executor, job)
        except BrokenProcessPool:  # a process has ended since the last job was submitted
            self._start_again()
            self.submit(job)
            return
        self._jobs[future] = job
        future.add_done_callback(self._finished.put)

    def results(self) -> Iterator[tuple[Any, Any]]:
        """After an error the jobs that run are still waited for, and yielded; then it is raised."""
        error = None
        while self._jobs:
            future = self._finished.get()
            if future not in self._jobs:  # of an earlier executor
                continue
            if error is None and isinstance(future_error(future), BrokenProcessPool):
                self._start_again()
                continue
            job = self._jobs.pop(future)
            if future.cancelled():
                continue
            if future.exception() is None:
                self._losses = 0
                yield job, future.result()
            elif error is None:
                error = future.exception()
                for waiting in list(self._jobs):
                    waiting.cancel()
        if error is not None:
            raise error

    def _start_again(self) -> None:
        """After the end of a process, which takes the executor with it: the jobs it had go to a new one."""
        self._losses += 1
        self._executor.shutdown()
        lost = [future for future in self._jobs if isinstance(future_error(future), BrokenProcessPool)]
        jobs = [self._jobs.pop(future) for future in lost]
        if self._losses >= MOST_LOSSES:
            place = f", at {jobs[0]} or soon after" if jobs else ""
            raise UserError(
                f"{MOST_LOSSES} processes ended one after the other without a result (killed, or out of "
                f"memory){place}: take fewer --jobs, then run the same command again"
            )
        self._executor = self._start_executor()
        for job in jobs:
            self.submit(job)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def future_error(future: Future) -> BaseException | None:
    """What a finished future raised, if it did."""
    return None if future.cancelled() else future.exception()


class LocalThreads(_Pool):
    """For jobs that wait for programs of their own."""

    def __init__(self, make_worker: MakeWorker, count: int):
        self._run_job = make_worker()
        self._count = count
        super().__init__()

    def _start_executor(self) -> Executor:
        return ThreadPoolExecutor(self._count)

    def _submit_to(self, executor: Executor, job: Any) -> Future:
        return executor.submit(self._run_job, job)


class LocalProcesses(_Pool):
    """New processes on every system, which end with this one."""

    def __init__(self, make_worker: MakeWorker, count: int):
        self._make_worker = make_worker
        self._count = count
        super().__init__()

    def _start_executor(self) -> Executor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, context, _start_process, (self._make_worker,))

    def _submit_to(self, executor: Executor, job: Any) -> Future:
        return executor.submit(_run_in_process, job)


_workers: dict[Any, RunJob] = {}  # of this process
_make_worker: MakeWorker | None = None  # of this process


def _start_process(make_worker: MakeWorker) -> None:
    global _make_worker
    _make_worker = make_worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to all: the first process has the word
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without it the processes of a command that was killed would wait for jobs for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_process(job: Any) -> Any:
    if None not in _workers:
        _workers[None] = _make_worker()
    return _workers[None](job)


# --- Ray ---------------------------------------------------------------------------------------------------


class RayCluster(Engine):
    """Processes on all machines of a cluster, or of a new one on this machine where none is running.

    `address`: HOST:PORT; empty for $RAY_ADDRESS or what runs on this machine. A job takes `cpus` processors
    and `gpus` graphics processors (a share, such as 0.5, too); None: 1 where the cluster has any. Raises
    UserError where Ray is missing or no cluster answers.
    """

    def __init__(self, make_worker: MakeWorker, address: str, cpus: int, gpus: float | None = 0):
        self._ray = _import_ray()
        _connect(self._ray, address)
        self._jobs: dict[Any, Any] = {}  # by their references
        if gpus is None:
            gpus = min(1, self._ray.cluster_resources().get("GPU", 0))
        self._made_by = self._ray.put(make_worker)  # once to every machine
        self._run = self._ray.remote(_run_on_ray).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=MOST_LOSSES
        )
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            print(
                f"note: waiting for a machine of the Ray cluster with {cpus} CPUs and {gpus:g} GPUs",
                file=sys.stderr,
            )

    def submit(self, job: Any) -> None:
        # In a list, a reference is handed on as it is.
        reference = self._run.remote([self._made_by], os.getcwd(), job)  # noqa: PTH109
        self._jobs[reference] = job

    def results(self) -> Iterator[tuple[Any, Any]]:
        errors = self._ray.exceptions
        address = self._ray.get_runtime_context().gcs_address
        while self._jobs:
            done, _ = self._ray.wait(list(self._jobs), timeout=CHECK_SECONDS)
            if not done:
                _check_reachable(address)
                continue
            (reference,) = done
            job = self._jobs.pop(reference)
            try:
                result = self._ray.get(reference)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayError as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{job} was lost {1 + MOST_LOSSES} times on the Ray cluster ({type(error).__name__}: "
                    f"{reason}): look at its machines, then run the same command again"
                ) from None
            yield job, result

    def close(self) -> None:
        self._ray.shutdown()


def _run_on_ray(references: list[Any], folder: str, job: Any) -> Any:
    """In a process of the cluster: as if started in the command's `folder`, where there is one."""
    (reference,) = references
    if reference not in _workers:
        _workers.clear()
        _workers[reference] = _import_ray().get(reference)()
    with suppress(OSError):
        os.chdir(folder)
    return _workers[reference](job)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    try:
        import ray
    except ImportError:
        raise UserError(f"--ray needs the package ray: {INSTALL_CLUSTER}, or take --jobs N") from None
    check_versions(["ray"], CLUSTER_REQUIREMENTS)
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "auto", "local"):
        _check_cluster(address)
    package = str(Path(__file__).parent)  # machines without this program get it
    try:
        ray.init(
            address or None,
            runtime_env={"py_modules": [package]},
            logging_level="ERROR",
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises that very class, too
        ray.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{f'--ray {address}'.strip()}: no cluster could be joined or started ({reason})"
        ) from None


def _check_reachable(address: str) -> None:
    """Raises UserError where a cluster is gone; a minute later Ray would end this process by itself."""
    host, _, port = address.rpartition(":")
    for is_last in (False, True):
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=CHECK_SECONDS):
            return
        if not is_last:
            time.sleep(1)
    raise UserError(
        f"--ray {address}: the Ray cluster is gone; what is done stays: run the same command again"
    )


def _check_cluster(address: str) -> None:
    """Raises UserError where no cluster answers in time; by itself Ray tries for minutes, then exits."""
    if "://" in address:
        raise UserError(f"--ray {address}: give HOST:PORT, and run this on a machine of the cluster")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECTION_SECONDS)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
    except subprocess.TimeoutExpired:
        reason = f"no answer in {CONNECTION_SECONDS} s"
    if reason:
        raise UserError(f"--ray {address}: no Ray cluster there ({reason}): start one, or correct HOST:PORT")
