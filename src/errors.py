"""Show what an ensemble gets wrong out of fold: output/<data.name>/errors/errors.html and errors.csv."""

from defects import cli
from defects.report.ensemble import submitted_experiments
from defects.report.errors import write_errors


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
    submitted = [] if arguments.detector else submitted_experiments(config)
    experiments = arguments.experiments or submitted or [config.experiment]
    print(f"experiments: {', '.join(experiments)}")
    for path in write_errors(config, list(dict.fromkeys(experiments))):
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
