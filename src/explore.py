"""Draw what a data set looks like: output/<data.name>/explore.png, and its duplicates, groups.png."""

from defects import cli
from defects.report.explore import explore


def main() -> None:
    for config in cli.configs_from(cli.parser(__doc__).parse_args()):
        for path in explore(config):
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
