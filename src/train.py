"""Train one experiment on one fold, on all of them, or on everything (full)."""

from defects import cli
from defects.data.split import FULL, fold_names
from defects.training.run import train_fold


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", default="0", help=f"a fold number, all, or {FULL} (every training image)")
    parser.add_argument("--restart", action="store_true", help="throw away what the run folder holds")
    arguments = parser.parse_args()
    for config in cli.configs_from(arguments):
        for fold in fold_names(config)[:-1] if arguments.fold == "all" else [arguments.fold]:
            train_fold(config, fold, arguments.restart)


if __name__ == "__main__":
    cli.run(main)
