"""Show what an ensemble gets wrong out of fold: output/<data.name>/errors/errors.html and errors.csv."""

from argparse import Namespace

from defects import cli, stages
from defects.config import resolve
from defects.files import write_csv
from defects.reports.ensemble_tables import load_ensemble_tables
from defects.reports.error_report import write_error_report
from defects.runs import Run, check_same_data
from defects.submission.build import open_runs, read_summary


def main() -> None:
    parser = cli.run_parser(
        __doc__, default=f"the runs of submissions/sample_submission.csv, or else {cli.DEFAULT_RUN}"
    )
    arguments = parser.parse_args()
    runs = cli.runs_from(arguments) if arguments.runs else submitted_runs(arguments)
    check_same_data(runs)
    print(f"runs: {', '.join(run.name for run in runs)}")
    config = runs[0].config
    tables = load_ensemble_tables(runs, stages.ensure_tables(config))
    page = config.dataset_dir / "errors" / "errors.html"
    listing = page.with_suffix(".csv")
    write_csv(listing, tables.build_table())
    write_error_report(page, config, tables)
    for path in (page, listing):
        print(f"wrote {path}")


def submitted_runs(arguments: Namespace) -> list[Run]:
    """Those of submissions/sample_submission.json; of an output folder of its own, the default run."""
    path = resolve("submissions") / "sample_submission.csv"
    if arguments.output is None and path.with_suffix(".json").exists():
        return open_runs(read_summary(path), None, arguments.set)
    return cli.runs_from(arguments)


if __name__ == "__main__":
    cli.run(main)
