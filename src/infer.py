"""Score the test images with the trained folds and write submissions/<experiment>.csv."""

from accelerate import PartialState

from defects import cli
from defects.config import Config, resolve
from defects.models import build_detector
from defects.submission.summary import build_and_print
from defects.training.inference import score_test


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--use", choices=["folds", "full", "both"], default="folds", help="the models that score"
    )
    arguments = parser.parse_args()
    for config in cli.configs_from(arguments):
        infer(config, arguments.use)


def infer(config: Config, use: str) -> None:
    score_test(config, use)
    if not PartialState().is_main_process:
        return
    print(f"wrote {config.experiment_dir / 'test.csv'}")
    path = resolve(config.submissions) / f"{config.experiment}.csv"
    if config.data.classes and not build_detector(config, pretrained=False).segments:
        print("it makes no masks: join it with a segmenter by src/ensemble.py --experiments")
        return
    build_and_print(config, [config.experiment], path)


if __name__ == "__main__":
    cli.run(main)
