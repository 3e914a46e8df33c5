"""Group duplicates, cut leak-free folds, plan the oversampling: folds.csv and train_fold<k>.csv."""

import pandas as pd

from defects import cli
from defects.config import Config
from defects.data.split import FULL, load_training_rows, split
from defects.files import read_csv


def main() -> None:
    config = cli.config_from(cli.parser(__doc__).parse_args())
    table = split(config)
    print(fold_table(config, table).to_string())
    print(duplicates_line(config, table))
    print(f"wrote {config.dataset_dir / 'folds.csv'} and the training lists beside it")


def fold_table(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Per fold: held-out originals of each class and groups; training rows of each class, their ratio."""
    labels = table.set_index("image_id")["label"]
    lines = {}
    for fold in [*map(str, range(config.split.folds)), FULL]:
        held = table[table["fold"] == fold]
        copies = load_training_rows(config, fold)["image_id"].map(labels)
        defect, normal = int((copies == 1).sum()), int((copies == 0).sum())
        lines[fold] = {
            "held-out defect": int((held["label"] == 1).sum()),
            "normal": int((held["label"] == 0).sum()),
            "groups": held["group"].nunique(),
            "training defect rows": defect,
            "normal rows": normal,
            "ratio": f"1:{normal / defect:.2f}" if defect else "-",
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("fold")


def duplicates_line(config: Config, table: pd.DataFrame) -> str:
    """How much was grouped, and whether labels contradict within a group's pairs."""
    pairs = read_csv(config.dataset_dir / "pairs.csv", ["i", "j", "kind"], "src/split.py")
    labels = table.set_index("image_id")["label"]
    contradicting = pairs[pairs["i"].map(labels).to_numpy() != pairs["j"].map(labels).to_numpy()]
    sizes = table["group"].value_counts()
    text = (
        f"{len(table)} images in {len(sizes)} groups (largest {sizes.max()}), {int(sizes[sizes > 1].sum())} "
        f"with a sibling; {int((pairs['kind'] == 'exact').sum())} exact copies"
    )
    for pair in contradicting.itertuples():
        text += f"\nnote: {pair.i} and {pair.j} look the same ({pair.kind}) but are labelled differently"
    return text


if __name__ == "__main__":
    cli.run(main)
