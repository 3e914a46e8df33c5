"""Validate a submission, send it with the kaggle command line, and note it in submissions/ledger.csv."""

import argparse
from pathlib import Path

from defects import cli, stages
from defects.config_schema import Config, resolve
from defects.files import locked
from defects.runs import Run
from defects.submission import bundle, kernel
from defects.submission.kaggle_cli import show_command
from defects.submission.send import (
    TAG_LENGTH,
    Submission,
    file_options,
    load_submission,
    send,
    submit_command,
)
from defects.submission.summary import open_runs, read_summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--submission", type=Path, default=None, help="default: submissions/sample_submission.csv"
    )
    parser.add_argument("--message", default=None, help="default: the runs and their expected score")
    parser.add_argument(
        "--wheels", type=Path, default=None, metavar="FOLDER", help="wheels for the notebook, not downloaded"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, send nothing")
    cli.add_run_options(parser)
    arguments = parser.parse_args()
    path = (arguments.submission or resolve("submissions") / "sample_submission.csv").absolute()
    summary = read_summary(path)
    runs = open_runs(summary, arguments.output, arguments.set)
    config = runs[0].config
    submission = load_submission(config, stages.ensure_images(config), path, summary, arguments.message)
    print(f"{path} is valid: {submission.summary['images']} images, sha256 {submission.sha256[:TAG_LENGTH]}")
    if config.data.kaggle is None:
        print(f"{config.data.name} is not on Kaggle (no data.kaggle): upload {path} by hand")
        return
    with locked(path.parent, wait=False):  # two at once would not see each other
        if config.data.kaggle.kernel is None:
            submit_file(config, submission, arguments)
        else:
            submit_notebook(runs, submission, arguments)


def submit_file(config: Config, submission: Submission, arguments: argparse.Namespace) -> None:
    options = file_options(submission.path)
    tag = submission.sha256[:TAG_LENGTH]
    if arguments.dry_run:
        command = submit_command(config.data.kaggle.competition, options, tag, submission.message)
        print_plan([show_command(command)], [submission.path])
        return
    print_receipt(
        submission,
        send(submission, config.data.kaggle.competition, tag, lambda: options, ledger_of(submission)),
    )


def submit_notebook(runs: list[Run], submission: Submission, arguments: argparse.Namespace) -> None:
    config = runs[0].config
    folder = submission.path.with_name(f"{submission.path.stem}_bundle")
    built = bundle.build_bundle(runs, submission.summary, folder, arguments.wheels)
    if submission.summary["decision"]["prior"] == "estimated":
        print(
            "note: the notebook estimates the share of defects anew, from the test images that it is run on"
        )
    competition = config.data.kaggle.competition
    tag = built.sha256[:TAG_LENGTH]
    pins = [] if arguments.wheels else bundle.pins(config.data.kaggle)
    if arguments.dry_run:
        final = submit_command(competition, kernel.options(built, "VERSION"), tag, submission.message)
        print_plan([*kernel.planned(built, pins), show_command(final)], kernel.list_bundle_files(built))
        return

    def run_there() -> list[str]:
        if arguments.wheels is None:
            bundle.fetch_wheels(pins, built.folder / "dataset")
        return kernel.run_notebook(built)

    print_receipt(submission, send(submission, competition, tag, run_there, ledger_of(submission)))


def ledger_of(submission: Submission) -> Path:
    return submission.path.with_name("ledger.csv")


def print_plan(commands: list[str], files: list[Path]) -> None:
    print("dry run, nothing is sent; the commands would be")
    for command in commands:
        print(f"  {command}")
    print("and the files")
    for path in files:
        print(f"  {path} ({path.stat().st_size:,} bytes)")


def print_receipt(submission: Submission, row: dict) -> None:
    score = f", public score {row['public_score']}" if row["public_score"] else ""
    print(f"on Kaggle as {row['ref']}: {row['status']}{score}")
    print(f"wrote {ledger_of(submission)}")


if __name__ == "__main__":
    cli.run(main)
