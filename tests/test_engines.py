"""Engines: every job is done once, whatever happens to the processes."""

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from defects import engines
from defects.engines import InTurn, LocalProcesses, LocalThreads, RayCluster
from defects.messages import UserError


def make_squarer():
    return lambda number: number**2


def make_mortal(folder):
    """Jobs are numbers; the process of job 3 is killed the first time, that of job 13 always."""

    def run(number):
        mark = Path(folder) / f"{number}_{os.getpid()}"
        mark.touch()
        first = len(list(Path(folder).glob(f"{number}_*"))) == 1
        if number == 13 or (number == 3 and first):
            os._exit(9)
        return number**2

    return run


def make_refusing():
    def run(number):
        if number == 1:
            raise UserError("no. 1 is wrong")
        return number

    return run


def do_all(engine, jobs):
    with engine:
        for job in jobs:
            engine.submit(job)
        return sorted(engine.results())


def squares(count):
    return [(number, number**2) for number in range(count)]


@pytest.mark.parametrize("start", [InTurn, partial(LocalThreads, count=3)])
def test_engine_does_every_job_once(start):
    assert do_all(start(make_squarer), range(20)) == squares(20)


def test_engine_takes_jobs_while_results_are_read():
    with LocalThreads(make_squarer, 2) as engine:
        engine.submit(2)
        seen = []
        for job, square in engine.results():
            seen.append(square)
            if job < 100:
                engine.submit(square)
    assert seen == [4, 16, 256, 65536]


def test_local_threads_run_at_the_same_time():
    both = threading.Barrier(2, timeout=20)
    engine = LocalThreads(lambda: lambda job: both.wait() >= 0, 2)
    assert do_all(engine, "ab") == [("a", True), ("b", True)]


def test_local_threads_yield_what_is_under_way_before_an_error():
    with LocalThreads(make_refusing, 1) as engine:
        for number in (0, 1, 2):
            engine.submit(number)
        results = engine.results()
        assert next(results) == (0, 0)
        with pytest.raises(UserError, match="no. 1 is wrong"):
            list(results)


def test_local_processes_lose_and_double_nothing_when_one_is_killed(tmp_path):
    assert do_all(LocalProcesses(partial(make_mortal, str(tmp_path)), 2), range(6)) == squares(6)
    assert len(list(tmp_path.glob("3_*"))) == 2


def test_local_processes_give_up_a_job_that_ends_each_of_them(tmp_path):
    engine = LocalProcesses(partial(make_mortal, str(tmp_path)), 1)
    with pytest.raises(UserError, match="3 processes ended one after the other .* at 13 "):
        do_all(engine, [13])


def test_ray_cluster_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-cluster.txt"):
        RayCluster(make_squarer, "", 1)


def test_ray_cluster_waits_no_longer_than_its_limit(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(engines.subprocess, "run", hang)
    monkeypatch.setattr(engines, "_import_ray", lambda: None)
    with pytest.raises(UserError, match="10.0.0.1:6379: no Ray cluster there .no answer in 20 s"):
        RayCluster(make_squarer, "10.0.0.1:6379", 1)


def test_ray_cluster_does_every_job_once_though_a_process_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # for its processes
    engine = RayCluster(partial(make_mortal, str(tmp_path)), "local", 1)
    assert do_all(engine, range(6)) == squares(6)
    assert len(list(tmp_path.glob("3_*"))) == 2
