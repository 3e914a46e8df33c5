"""Train many experiments: every combination of models, settings and seeds in a YAML, fold by fold.

python src/sweep.py SWEEP.yaml takes one job after the other; torchrun --nproc_per_node 4 src/sweep.py
SWEEP.yaml takes four at a time, on as many machines as run it (they must share the output folder). Run
the same command again to go on after an interruption.
"""

import argparse
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object

from defects import cli, stages
from defects.config_schema import resolve
from defects.data.fold_files import load_tables
from defects.evaluation.estimate import estimate
from defects.files import write_csv
from defects.messages import UserError
from defects.reports.html import build_markdown_table, format_number
from defects.reports.run_report import load_aligned_oof
from defects.training.sweep_jobs import Experiment, list_experiments, load_sweep, run_job, score_if_complete

FIGURES = {"macro-F1 (nested CV)": "nested_macro_f1", "AUROC": "auroc"}  # heading -> key of estimate
PATIENCE = timedelta(days=30)  # between processes: the first to finish waits for the last


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "sweep", type=Path, help="YAML with data or config, models, seeds, grid, folds, infer"
    )
    parser.add_argument("--data", default=None, help="a file of configs/data, in place of the sweep's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    arguments = parser.parse_args()
    sweep = load_sweep(arguments.sweep, arguments.data)
    members = list_experiments(sweep, arguments.set)
    folder = resolve(members[0].config.output) / "sweeps" / sweep.name
    state = PartialState(cpu=True, timeout=PATIENCE)  # the sweep itself only waits: it takes no GPU
    with state.main_process_first():
        for config in {member.config.data.name: member.config for member in members}.values():
            stages.ensure_tables(config)
    jobs = [(member, fold) for member in members for fold in member.folds]
    own_jobs = jobs[state.process_index :: state.num_processes]
    failed = []  # names of experiments and log files
    for member, member_jobs in groupby(own_jobs, key=itemgetter(0)):
        logs = [run_job(member, fold, folder) for _, fold in member_jobs]
        if sweep.infer:
            logs.append(score_if_complete(member, folder))
        failed += [(member.name, log) for log in logs if log]
    failed = gather_object(failed)
    if state.is_main_process:
        print_results(members, failed, folder)


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
