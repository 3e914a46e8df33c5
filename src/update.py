"""Add a folder of new normal images to the memory bank of a trained PatchCore, without fitting it anew."""

from pathlib import Path

from defects import cli
from defects.training.run import run_folder
from defects.training.update import update_bank


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="new images of normal parts")
    parser.add_argument("--fold", default="0", help="the run to update: a fold number, or full")
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    entered, size = update_bank(config, arguments.fold, arguments.images)
    print(f"{entered:,} patches entered the bank, which holds {size:,}")
    print(f"wrote {run_folder(config, arguments.fold)}")


if __name__ == "__main__":
    cli.run(main)
