"""Add a folder of new normal images to the memory bank of a trained PatchCore, without fitting it anew."""

from pathlib import Path

from defects import cli, stages
from defects.training.bank_update import update_bank


def main() -> None:
    parser = cli.run_parser(__doc__, takes_several=False)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="new images of normal parts")
    parser.add_argument("--fold", default="0", help="the fold to update, or full")
    arguments = parser.parse_args()
    run = cli.run_from(arguments)
    tables = stages.ensure_tables(run.config)
    entered, size = update_bank(run, arguments.fold, arguments.images, tables)
    print(f"{entered:,} patches entered the bank, which holds {size:,}")
    print(f"wrote {run.fold_folder(arguments.fold)}")


if __name__ == "__main__":
    cli.run(main)
