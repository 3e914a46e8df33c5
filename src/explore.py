"""Draw what a data set looks like: output/<data.name>/explore.html.

Also whether training images can be told from test images (adversarial validation): adversarial.json and
.html.
"""

from defects import cli
from defects.data.prepare import load_images
from defects.data.split import load_folds
from defects.reports.adversarial_report import write_adversarial
from defects.reports.data_report import write_data_report
from defects.reports.sibling_pairs import draw_siblings


def main() -> None:
    for config in cli.configs_from(cli.parser(__doc__).parse_args()):
        path = config.dataset_dir / "explore.html"
        images = load_images(config)
        folds = load_folds(config)
        write_data_report(path, config.data, images, folds, draw_siblings(config, folds))
        lines, compared = write_adversarial(config)
        print("\n".join(lines))
        for written in (path, *compared):
            print(f"wrote {written}")


if __name__ == "__main__":
    cli.run(main)
