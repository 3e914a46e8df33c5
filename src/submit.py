"""Validate a submission, send it with the kaggle command line, and note it in submissions/ledger.csv."""

import argparse
from pathlib import Path

from defects import cli
from defects.config import Config, resolve
from defects.files import locked
from defects.submission import bundle, kernel
from defects.submission.kaggle_cli import shown
from defects.submission.send import (
    TAG_LENGTH,
    Submission,
    file_options,
    load_submission,
    send,
    submit_command,
)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--submission", type=Path, default=None, help="default: submissions/sample_submission.csv"
    )
    parser.add_argument("--message", default=None, help="default: the experiments and their promise")
    parser.add_argument(
        "--wheels", type=Path, default=None, metavar="FOLDER", help="wheels for the notebook, not downloaded"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, send nothing")
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    path = arguments.submission or resolve(config.submissions) / "sample_submission.csv"
    submission = load_submission(config, path.resolve(), arguments.message)
    print(f"{path} is valid: {submission.summary['images']} images, sha256 {submission.sha256[:TAG_LENGTH]}")
    if config.data.kaggle is None:
        print(f"{config.data.name} is not on Kaggle (no data.kaggle): upload {path} by hand")
        return
    with locked(resolve(config.submissions), wait=False):  # two at once would not see each other
        deliver = deliver_file if config.data.kaggle.kernel is None else deliver_notebook
        deliver(config, submission, arguments)


def deliver_file(config: Config, submission: Submission, arguments: argparse.Namespace) -> None:
    options, tag = file_options(submission.path), submission.sha256[:TAG_LENGTH]
    if arguments.dry_run:
        command = submit_command(config.data.kaggle.competition, options, tag, submission.message)
        report_plan([shown(command)], [submission.path])
        return
    report(config, send(submission, config.data.kaggle.competition, tag, lambda: options, ledger(config)))


def deliver_notebook(config: Config, submission: Submission, arguments: argparse.Namespace) -> None:
    folder = submission.path.with_name(f"{submission.path.stem}_bundle")
    made = bundle.build_bundle(config, submission.summary, folder, arguments.wheels)
    if submission.summary["decision"]["prior"] == "estimated":
        print("note: the notebook estimates the share of defects anew, from the test images that it finds")
    competition, tag = config.data.kaggle.competition, made.sha256[:TAG_LENGTH]
    pins = [] if arguments.wheels else bundle.pins(config.data.kaggle)
    if arguments.dry_run:
        final = submit_command(competition, kernel.options(made, "VERSION"), tag, submission.message)
        report_plan([*kernel.planned(made, pins), shown(final)], kernel.files(made))
        return

    def run_there() -> list[str]:
        if arguments.wheels is None:
            bundle.fetch_wheels(pins, made.folder / "dataset")
        return kernel.run_notebook(made)

    report(config, send(submission, competition, tag, run_there, ledger(config)))


def ledger(config: Config) -> Path:
    return resolve(config.submissions) / "ledger.csv"


def report_plan(commands: list[str], files: list[Path]) -> None:
    print("dry run, nothing is sent; the commands would be")
    for command in commands:
        print(f"  {command}")
    print("and the files")
    for path in files:
        print(f"  {path} ({path.stat().st_size:,} bytes)")


def report(config: Config, row: dict) -> None:
    score = f", public score {row['public_score']}" if row["public_score"] else ""
    print(f"on Kaggle as {row['ref']}: {row['status']}{score}")
    print(f"wrote {ledger(config)}")


if __name__ == "__main__":
    cli.run(main)
