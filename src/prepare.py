"""Index a data set: output/<data.name>/images.csv. With --download, fetch it from Kaggle first."""

from defects import cli
from defects.config_schema import resolve
from defects.data.index import prepare
from defects.messages import UserError
from defects.submission import kaggle_cli


def main() -> None:
    parser = cli.experiment_parser(__doc__)
    parser.add_argument(
        "--download", action="store_true", help="fetch the competition's files from Kaggle first"
    )
    arguments = parser.parse_args()
    for config in cli.configs_from(arguments):
        if arguments.download:
            if config.data.kaggle is None:
                raise UserError(f"{config.experiment} names no Kaggle competition (data.kaggle.competition)")
            kaggle_cli.download(config.data.kaggle, resolve(config.data.root))
        prepare(config)
        print(f"wrote {config.dataset_dir / 'images.csv'}")


if __name__ == "__main__":
    cli.run(main)
