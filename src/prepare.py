"""Index a data set: output/<data.name>/images.csv. With --download, fetch it from Kaggle first."""

from defects import cli
from defects.config import resolve
from defects.data.prepare import prepare
from defects.errors import UserError
from defects.submission import kaggle_cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--download", action="store_true", help="fetch the competition's files from Kaggle first"
    )
    arguments = parser.parse_args()
    config = cli.config_from(arguments)
    if arguments.download:
        if config.data.kaggle is None:
            raise UserError(f"{arguments.config} names no Kaggle competition (data.kaggle.competition)")
        kaggle_cli.download(config.data.kaggle, resolve(config.data.root))
    images = prepare(config)
    counts = images.groupby(
        ["split", images["label"].map({0: "normal", 1: "defect"}).fillna("unlabelled")]
    ).size()
    for (split, label), count in counts.items():
        print(f"{split:6}{label:12}{count:7}")
    print(f"wrote {config.dataset_dir / 'images.csv'}")


if __name__ == "__main__":
    cli.run(main)
