"""Show what an ensemble gets wrong out of fold: output/<data.name>/errors/errors.html and errors.csv."""

from argparse import Namespace

from defects import cli, stages
from defects.config import resolve
from defects.report.errors import write_errors
from defects.runs import Run, check_same_data
from defects.submission.build import open_runs, read_summary


def main() -> None:
    parser = cli.run_parser(
        __doc__, default="the runs of submissions/sample_submission.csv, or else demo_classifier_tiny"
    )
    arguments = parser.parse_args()
    runs = cli.runs_from(arguments) if arguments.runs else submitted_runs(arguments)
    check_same_data(runs)
    print(f"runs: {', '.join(run.name for run in runs)}")
    for path in write_errors(runs, stages.ensure_tables(runs[0].config)):
        print(f"wrote {path}")


def submitted_runs(arguments: Namespace) -> list[Run]:
    """Those of submissions/sample_submission.json; of an output folder of its own, the default run."""
    path = resolve("submissions") / "sample_submission.csv"
    if arguments.output is None and path.with_suffix(".json").exists():
        return open_runs(read_summary(path), None, arguments.set)
    return cli.runs_from(arguments)


if __name__ == "__main__":
    cli.run(main)
