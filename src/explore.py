"""Draw what a data set looks like: output/<data.name>/explore.html.

Also whether training and test images can be distinguished (adversarial validation): adversarial.json and
.html.
"""

from defects import cli, stages
from defects.reports.adversarial_report import write_adversarial
from defects.reports.data_report import build_data_report, draw_siblings
from defects.reports.html import write_page


def main() -> None:
    for config in cli.configs_from(cli.experiment_parser(__doc__).parse_args()):
        tables = stages.ensure_tables(config)
        path = config.dataset_dir / "explore.html"
        siblings = draw_siblings(config, tables.folds)
        write_page(path, build_data_report(config.data, tables.images, tables.folds, siblings))
        lines, compared = write_adversarial(config, tables)
        print("\n".join(lines))
        for written in (path, *compared):
            print(f"wrote {written}")


if __name__ == "__main__":
    cli.run(main)
