"""Put experiments on one data set side by side: output/<data.name>/compare.md, .csv, .html and .png.

With --test the answer key of the test images is read, as otherwise by src/evaluate.py only. Look once, at the
end: choosing by it is leaking.
"""

from defects import cli
from defects.config import Config, resolve
from defects.errors import UserError
from defects.reports.comparison import Study, measure
from defects.reports.comparison_report import write_comparison
from defects.training.experiments import trained_experiments


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--experiments",
        nargs="+",
        help="folders of output/, without the category; default: all that are trained on the data set",
    )
    parser.add_argument("--test", action="store_true", help="add figures of the test images")
    arguments = parser.parse_args()
    configs = cli.configs_from(arguments)
    studies = [make_study(config, arguments.category, arguments.experiments) for config in configs]
    name = studies[0].data_name
    values = measure(studies, arguments.test)
    paths, table = write_comparison(values, name, resolve(configs[0].output) / name)
    print(table)
    for path in paths:
        print(f"wrote {path}")


def make_study(config: Config, category: str | None, experiments: list[str] | None) -> Study:
    """The experiments asked for, or all that are trained; UserError if there are none."""
    study = Study(config, [], config.data.root.name if category else "")
    study.experiments = [f"{name}{study.ending}" for name in experiments or []] or trained_experiments(config)
    if not study.experiments:
        raise UserError(f"no experiment is trained on {config.data.name}: run src/train.py first")
    return study


if __name__ == "__main__":
    cli.run(main)
