"""Show what an ensemble gets wrong out of fold: output/<data.name>/errors/errors.html and errors.csv."""

from argparse import Namespace
from pathlib import Path

from defects import cli, stages
from defects.config_schema import resolve
from defects.files import write_csv
from defects.reports.error_report import build_error_report, load_ensemble_tables
from defects.reports.html import write_page
from defects.runs import Run, check_same_data
from defects.submission.summary import open_runs, read_summary


def main() -> None:
    parser = cli.run_parser(
        __doc__, default=f"the runs of submissions/sample_submission.csv, or else {cli.DEFAULT_RUN}"
    )
    parser.add_argument(
        "--submission", type=Path, default=None, help="the runs of this one; default: sample_submission.csv"
    )
    arguments = parser.parse_args()
    runs = choose_runs(arguments)
    check_same_data(runs)
    print(f"runs: {', '.join(run.name for run in runs)}")
    config = runs[0].config
    tables = load_ensemble_tables(runs, stages.ensure_tables(config))
    page = config.dataset_dir / "errors" / "errors.html"
    listing = page.with_suffix(".csv")
    write_csv(listing, tables.build_table())
    write_page(page, build_error_report(config, tables))
    for path in (page, listing):
        print(f"wrote {path}")


def choose_runs(arguments: Namespace) -> list[Run]:
    """Those named; else those of the submission; else, where there is none, the default run."""
    path = arguments.submission or resolve("submissions") / "sample_submission.csv"
    is_submitted = arguments.submission or (arguments.output is None and path.with_suffix(".json").exists())
    if arguments.runs or not is_submitted:
        return cli.runs_from(arguments)
    return open_runs(read_summary(path), arguments.output, arguments.set)


if __name__ == "__main__":
    cli.run(main)
