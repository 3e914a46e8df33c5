"""Draw the report of each run: output/<run>/report/report.html and its pictures."""

from defects import cli, stages
from defects.report.experiment import write_report


def main() -> None:
    for run in cli.runs_from(cli.run_parser(__doc__).parse_args()):
        for path in write_report(run, stages.ensure_tables(run.config)):
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
