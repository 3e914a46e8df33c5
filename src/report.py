"""Draw the report of an experiment: output/<experiment>/report/report.html and its pictures."""

from defects import cli
from defects.report.experiment import write_report


def main() -> None:
    for config in cli.configs_from(cli.parser(__doc__).parse_args()):
        for path in write_report(config):
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
