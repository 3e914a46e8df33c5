"""Draw the report of an experiment: output/<experiment>/report/report.html."""

from defects import cli
from defects.reports.run_report import ONE_LABEL, write_run_report
from defects.reports.run_tables import load_run_tables


def main() -> None:
    for config in cli.configs_from(cli.parser(__doc__).parse_args()):
        tables = load_run_tables(config)
        if (tables.oof["label"] == 1).all():
            print(f"{config.experiment}: {ONE_LABEL}")
        path = config.experiment_dir / "report" / "report.html"
        write_run_report(path, tables)
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
