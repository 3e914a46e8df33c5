"""Show what an ensemble gets wrong out of fold: output/<data.name>/errors/errors.html and errors.csv."""

from defects import cli
from defects.files import write_csv
from defects.reports.ensemble_tables import list_submitted_experiments, load_ensemble_tables
from defects.reports.error_report import write_error_report


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--experiments",
        nargs="+",
        help="folders of output/; default: those of submissions/sample_submission.json if it is about "
        "this data set and no --detector is named, else the config's own",
    )
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    submitted = [] if arguments.detector else list_submitted_experiments(config)
    experiments = list(dict.fromkeys(arguments.experiments or submitted or [config.experiment]))
    print(f"experiments: {', '.join(experiments)}")
    tables = load_ensemble_tables(config, experiments)
    page = config.dataset_dir / "errors" / "errors.html"
    listing = page.with_suffix(".csv")
    write_csv(listing, tables.build_table())
    write_error_report(page, config, tables)
    for path in (page, listing):
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
