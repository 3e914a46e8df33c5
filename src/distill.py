"""Distil the teacher of an EfficientAD: a small network learns a backbone's patch features."""

from pathlib import Path

from defects import cli, stages
from defects.training.distillation import distill


def main() -> None:
    parser = cli.experiment_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, help="any folder of images; by default the data set's own training images"
    )
    parser.add_argument("--steps", type=int, help="in place of model.options.distillation.steps")
    parser.add_argument("--restart", action="store_true", help="throw away what was learnt so far")
    arguments = parser.parse_args()
    if arguments.steps is not None:
        arguments.set.append(f"model.options.distillation.steps={arguments.steps}")
    config = cli.config_from(arguments, needs_model=True)
    distill(config, stages.ensure_images(config), arguments.images, arguments.restart)


if __name__ == "__main__":
    cli.run(main)
