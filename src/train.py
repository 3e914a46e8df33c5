"""Train one experiment on one fold, on all of them, or on everything (full)."""

from defects import cli
from defects.data.split import FULL
from defects.training.run import train_fold


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", default="0", help=f"a fold number, all, or {FULL} (every training image)")
    parser.add_argument("--restart", action="store_true", help="throw away what the run folder holds")
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    chosen = range(config.split.folds) if arguments.fold == "all" else [arguments.fold]
    for fold in chosen:
        train_fold(config, str(fold), arguments.restart)


if __name__ == "__main__":
    cli.run(main)
