"""Train one experiment on one fold, on all of them, or on everything (full)."""

from defects import cli, stages
from defects.runs import FULL, fold_names
from defects.training.fold import train_fold


def main() -> None:
    parser = cli.experiment_parser(__doc__)
    parser.add_argument("--fold", default="0", help=f"a fold number, all, or {FULL} (every training image)")
    parser.add_argument("--restart", action="store_true", help="throw away what the run folder holds")
    arguments = parser.parse_args()
    for config in cli.configs_from(arguments, needs_model=True):
        tables = stages.ensure_tables(config)
        for fold in fold_names(config)[:-1] if arguments.fold == "all" else [arguments.fold]:
            train_fold(config, fold, tables.folds, arguments.restart)


if __name__ == "__main__":
    cli.run(main)
