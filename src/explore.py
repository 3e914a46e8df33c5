"""Draw what a data set looks like: output/<data.name>/explore.png, and its duplicates, groups.png.

Also whether training images can be told from test images (adversarial validation): adversarial.json and .png.
"""

from defects import cli, stages
from defects.report.adversarial import write_adversarial
from defects.report.explore import explore


def main() -> None:
    for config in cli.configs_from(cli.experiment_parser(__doc__).parse_args()):
        tables = stages.ensure_tables(config)
        drawn = explore(config, tables)
        lines, compared = write_adversarial(config, tables)
        print("\n".join(lines))
        for path in [*drawn, *compared]:
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
