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
    if config.data.classes and not makes_masks(config):
        return
    build_and_print(config, [config.experiment], path)


def makes_masks(config: Config) -> bool:
    """Whether the detector marks classes by itself; says so if it does not."""
    detector = build_detector(config, pretrained=False)
    if len(detector.targets) == 1:
        print(f"{config.model.name} tells no classes apart: there is no submission to be made of it")
    elif not detector.segments:
        print("it makes no masks: join it with a segmenter by src/ensemble.py --experiments")
    return detector.segments and len(detector.targets) > 1


if __name__ == "__main__":
    cli.run(main)
