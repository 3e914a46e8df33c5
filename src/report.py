"""Draw the report of each run: output/<run>/report/report.html."""

from defects import cli, stages
from defects.evaluation.claim_records import summarise_claims
from defects.reports.html import write_page
from defects.reports.run_report import ONE_LABEL, build_run_report, load_run_tables


def main() -> None:
    for run in cli.runs_from(cli.run_parser(__doc__).parse_args()):
        tables = load_run_tables(run, stages.ensure_tables(run.config))
        if (tables.oof["label"] == 1).all():
            print(f"{run.name}: {ONE_LABEL}")
        path = run.folder / "report" / "report.html"
        write_page(path, build_run_report(tables))
        print("\n".join(summarise_claims(tables.claims.claims)))
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
