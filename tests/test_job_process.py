"""Scripts as jobs: their logs, their devices, and how they end."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from defects import job_process
from defects.config_schema import ROOT
from defects.job_process import ScriptJob, ScriptOutcome, job_environment, make_script_runner
from defects.messages import UserError

LIMIT_SECONDS = 30
posix = pytest.mark.skipif(os.name == "nt", reason="no signals")


@pytest.fixture
def write_job(tmp_path):
    """write_job(code, *options) -> a job that runs these lines."""

    def write(code, *options):
        script = tmp_path / "script.py"
        script.write_text(code, encoding="utf-8")
        return ScriptJob("job", script, options, tmp_path / "logs" / "job.log")

    return write


def run(job):
    return make_script_runner(None, ())(job)


def wait_until(is_so):
    end = time.monotonic() + LIMIT_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_run_script_keeps_the_output_and_the_exit_code(write_job):
    job = write_job("import sys; print(sys.argv[1:], sys.path[0]); sys.exit(2)", "--fold", "0")
    assert run(job).code == 2
    assert job.log.read_text().strip() == f"['--fold', '0'] {job.script.parent}"


@posix
def test_run_script_starts_one_that_was_killed_again(write_job):
    code = "import os, sys, pathlib; mark = pathlib.Path(sys.argv[1])\nif mark.exists(): print('went on')\n"
    job = write_job(code + "else: mark.touch(); os.kill(os.getpid(), 9)", "mark")
    job = write_job(job.script.read_text(), str(job.script.parent / "mark"))
    assert run(job).code == 0
    assert job.log.read_text().splitlines() == ["killed by signal 9", "went on"]


@posix
def test_run_script_gives_up_one_that_is_always_killed(write_job):
    job = write_job("import os; os.kill(os.getpid(), 9)")
    assert run(job).code == -9
    assert job.log.read_text().count("killed by signal 9") == 3


def test_run_script_ends_with_its_starter(write_job, tmp_path):
    mark = tmp_path / "mark"
    job = write_job(f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    code = "import sys; from pathlib import Path; from defects.job_process import *\n"
    code += "make_script_runner(None, ())(ScriptJob('job', Path(sys.argv[1]), (), Path(sys.argv[2])))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, job.script, job.log]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as starter:
        wait_until(lambda: mark.exists() and mark.read_text())
        starter.kill()
    wait_until(lambda: not psutil.pid_exists(int(mark.read_text())))


def test_run_script_names_a_script_that_this_machine_lacks(write_job, tmp_path):
    job = ScriptJob("job", tmp_path / "train.py", (), tmp_path / "log")
    with pytest.raises(UserError, match=r"train.py does not exist on .* share the folders"):
        run(job)


def test_make_script_runner_gives_no_device_to_two_jobs(monkeypatch, tmp_path):
    both = threading.Barrier(2, timeout=LIMIT_SECONDS)
    seen = []

    def run_script(job, environment):
        both.wait()
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        return ScriptOutcome(0, 0.0)

    monkeypatch.setattr(job_process, "run_script", run_script)
    runner = make_script_runner(1, ["4", "5"])
    job = ScriptJob("job", tmp_path, (), tmp_path)
    for _ in range(2):
        threads = [threading.Thread(target=runner, args=(job,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seen[:2]) == sorted(seen[2:]) == ["4", "5"]


def test_job_environment_knows_nothing_of_the_launcher(monkeypatch):
    added = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_WORLD_SIZE"]
    added += ["MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"]
    for name in added:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = job_environment(3)
    assert not set(added) & set(environment) and environment["PATH"] == os.environ["PATH"]
    assert environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert job_environment(3)["OMP_NUM_THREADS"] == "3"


def test_job_environment_sets_a_number_of_threads_that_is_empty(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert job_environment(3)["OMP_NUM_THREADS"] == "3"
