"""Blend experiments on out-of-fold scores: submissions/sample_submission.csv and its JSON.

The first time it also compares the training images with the test images, as src/explore.py does.
"""

from defects import cli
from defects.config import resolve
from defects.reports.adversarial_report import write_adversarial
from defects.scoring.adversarial import stored_comparison
from defects.submission.build import members_of
from defects.submission.summary import build_and_print
from defects.training.inference import load_test, score_test
from defects.training.run import load_oof


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--experiments",
        nargs="+",
        help="folders of output/ to blend; default: those of ensemble.weights, or the config's own",
    )
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    experiments = arguments.experiments or list(config.ensemble.weights or [config.experiment])
    if experiments == [config.experiment] and not (config.experiment_dir / "test.csv").exists():
        print(f"{config.experiment_dir / 'test.csv'} is missing: scoring the test images first")
        score_test(config, "folds")
    for member in members_of(config, experiments).values():
        load_oof(member)  # what is missing is told before the comparison, which takes a while
        load_test(member)
    if config.ensemble.compare and stored_comparison(config) is None:
        write_adversarial(config)
    path = resolve(config.submissions) / "sample_submission.csv"
    build_and_print(config, list(dict.fromkeys(experiments)), path)


if __name__ == "__main__":
    cli.run(main)
