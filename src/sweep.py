"""Train many experiments: every combination of models, settings and seeds in a YAML, fold by fold.

python src/sweep.py SWEEP.yaml takes one job after the other, --jobs N takes N at a time, --ray as many as a
Ray cluster has room for; its machines share the folders of the program, the data and the output. Run the
same command again to go on after an interruption.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import pandas as pd

from defects import cli, stages
from defects.config_schema import resolve
from defects.data.fold_files import load_tables
from defects.engines import Engine, InTurn, LocalThreads, RayCluster
from defects.evaluation.estimate import estimate
from defects.files import locked, write_csv
from defects.job_process import ScriptJob, make_script_runner
from defects.messages import UserError
from defects.reports.html import build_markdown_table, format_number
from defects.reports.run_report import load_aligned_oof
from defects.training.sweep_jobs import (
    Experiment,
    list_devices,
    list_experiments,
    list_training_jobs,
    load_sweep,
    make_scoring_job,
)

FIGURES = {"macro-F1 (nested CV)": "nested_macro_f1", "AUROC": "auroc"}  # heading -> key of estimate
SIZES_OF_LAUNCHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "sweep", type=Path, help="YAML with data or config, models, seeds, grid, folds, infer"
    )
    parser.add_argument("--data", default=None, help="a file of configs/data, in place of the sweep's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    cli.add_engine_options(parser, "train N folds")
    parser.add_argument(
        "--threads", type=cli.positive, help="of a job; default: its share of this machine, or 1 with --ray"
    )
    parser.add_argument(
        "--gpus", type=float, help="of a job with --ray, such as 1 or 0.5; default: 1 where there are any"
    )
    arguments = parser.parse_args()
    if any(os.environ.get(name, "1") != "1" for name in SIZES_OF_LAUNCHERS):
        raise UserError("sweep.py is one process: start it with python, and take --jobs N or --ray")
    sweep = load_sweep(arguments.sweep, arguments.data)
    members = list_experiments(sweep, arguments.set)
    folder = resolve(members[0].config.output) / "sweeps" / sweep.name
    for config in {member.config.data.name: member.config for member in members}.values():
        stages.ensure_tables(config)
    with locked(folder, wait=False):
        failed = run_jobs(members, sweep.infer, folder, arguments)
        print_results(members, failed, folder)


def run_jobs(
    members: list[Experiment], has_scoring: bool, folder: Path, arguments: argparse.Namespace
) -> list[tuple[str, Path]]:
    """Train what is not trained; experiments whose folds are all there are scored. Returns what failed:
    names of experiments and log files.
    """
    owners: dict[ScriptJob, Experiment] = {}
    for member in members:
        for job in list_training_jobs(member, folder).values():
            owners[job] = member
    for member in members:
        job = make_scoring_job(member, folder) if has_scoring and member not in owners.values() else None
        if job is not None:
            owners[job] = member
    if not owners:
        return []
    failed = []
    done = 0
    with start_engine(arguments) as engine:
        for job in owners:
            engine.submit(job)
        for job, outcome in engine.results():
            done += 1
            member = owners[job]
            state = "failed" if outcome.code else "done"
            print(f"{job.name} {state} in {outcome.seconds:.0f} s ({done} of {len(owners)})", flush=True)
            if not job.log.exists():
                raise UserError(f"{job.log} was written on another machine: the machines must share {folder}")
            if outcome.code:
                failed.append((member.name, job.log))
                continue
            scoring = make_scoring_job(member, folder) if has_scoring else None
            if scoring is not None and scoring not in owners:
                owners[scoring] = member
                engine.submit(scoring)
    return failed


def start_engine(arguments: argparse.Namespace) -> Engine:
    if arguments.ray is not None:
        cpus = arguments.threads or 1
        return RayCluster(partial(make_script_runner, cpus, ()), arguments.ray, cpus, arguments.gpus)
    if arguments.gpus is not None:
        raise UserError("--gpus is for --ray: elsewhere a job has a GPU of its own where there are several")
    jobs = arguments.jobs or 1
    if jobs == 1:
        return InTurn(partial(make_script_runner, arguments.threads, ()))
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // jobs)
    devices = list_devices()
    shared = [devices[number % len(devices)] for number in range(jobs)] if devices else []
    return LocalThreads(partial(make_script_runner, threads, shared), jobs)


def print_results(members: list[Experiment], failed: list[tuple[str, Path]], folder: Path) -> None:
    """Print the table of what was trained and a line for each failed job; UserError if there are any."""
    failed_names = {name for name, _ in failed}
    table = tabulate_experiments([member for member in members if member.name not in failed_names])
    write_csv(folder / "summary.csv", table.reset_index())
    texts = table.astype(str).assign(**{name: table[name].map(format_number) for name in FIGURES})
    print(build_markdown_table(texts))
    print(f"wrote {folder / 'summary.csv'}")
    for name, log in failed:
        print(f"failed: {name}, see {log}")
    if failed:
        raise UserError(f"{len(failed)} jobs failed: see their logs in {folder}, then run the sweep again")


def tabulate_experiments(members: list[Experiment]) -> pd.DataFrame:
    """By experiment: seed, number of folds, nested macro-F1 and AUROC out of fold (none of a full fit)."""
    rows = []
    for member in members:
        row = {"experiment": member.name, "seed": member.config.train.seed, "folds": len(member.folds)}
        if member.run.trained_folds():
            oof = load_aligned_oof(member.run, load_tables(member.config))
            expected = estimate(oof, member.config.threshold)
            row |= {name: expected[figure] for name, figure in FIGURES.items()}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["experiment", "seed", "folds", *FIGURES])
    return table.astype(dict.fromkeys(FIGURES, float)).set_index("experiment")


if __name__ == "__main__":
    cli.run(main)
