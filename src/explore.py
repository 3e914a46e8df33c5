"""Draw what a data set looks like: output/<data.name>/explore.png; its duplicates: groups.png, siblings.png.

Also whether training images can be told from test images (adversarial validation): adversarial.json and .png.
"""

from defects import cli
from defects.report.adversarial import write_adversarial
from defects.report.explore import explore


def main() -> None:
    for config in cli.configs_from(cli.parser(__doc__).parse_args()):
        drawn = explore(config)
        lines, compared = write_adversarial(config)
        print("\n".join(lines))
        for path in [*drawn, *compared]:
            print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
