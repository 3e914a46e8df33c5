"""Group duplicates, make leak-free folds, plan the oversampling: folds.csv and train_fold<k>.csv."""

import pandas as pd

from defects import cli, stages
from defects.config_schema import Config
from defects.data.fold_files import describe_search, load_training_rows, split
from defects.data.folds import class_targets
from defects.files import read_csv
from defects.messages import shorten_names
from defects.runs import fold_names


def main() -> None:
    for config in cli.configs_from(cli.experiment_parser(__doc__).parse_args()):
        table = split(config, stages.ensure_images(config))
        print(fold_table(config, table).to_string())
        print(duplicates_report(config, table))
        print(f"wrote {config.dataset_dir / 'folds.csv'} and the training lists beside it")


def fold_table(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Per fold: held-out originals of each class and groups; training rows of each class.

    Without classes also the ratio of the training rows; with them an image may count in several.
    """
    images = table.set_index("image_id")
    classes = config.data.classes
    lines = {}
    for fold in fold_names(config):
        validation = table[table["fold"] == fold]
        training = images.loc[load_training_rows(config, fold)["image_id"]]
        counts = _count_rows(validation, classes)
        copies = _count_rows(training, classes)
        first, *remaining = counts
        line = {f"held-out {first}": counts[first]} | {name: counts[name] for name in remaining}
        line |= {"groups": validation["group"].nunique(), f"training {first} rows": copies[first]}
        line |= {f"{name} rows": copies[name] for name in remaining}
        if not classes:
            line["ratio"] = f"1:{copies['normal'] / copies[first]:.2f}" if copies[first] else "-"
        lines[fold] = line
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("fold")


def _count_rows(rows: pd.DataFrame, classes: list[str]) -> dict[str, int]:
    """How many rows are of each class, or else defective, and how many are normal."""
    names = [f"class {name}" for name in classes] or ["defect"]
    return dict(zip([*names, "normal"], class_targets(rows).sum(axis=0).astype(int).tolist(), strict=True))


def duplicates_report(config: Config, table: pd.DataFrame) -> str:
    """How much was grouped, and which images look alike although their labels contradict."""
    pairs = read_csv(config.dataset_dir / "pairs.csv", ["i", "j", "kind"], "src/split.py")
    sizes = table["group"].value_counts()
    siblings = sizes[sizes > 1].sum()
    copies = (pairs["kind"] == "exact").sum()
    groups = f"{len(table)} images in {len(sizes)} groups (largest {sizes.max()})"
    lines = [f"{groups}, {siblings} with a sibling; {copies} exact copies", *describe_search(config)]
    labels = table.set_index("image_id")["label"]
    both_ways = pd.concat([pairs, pairs.rename(columns={"i": "j", "j": "i"})])
    contradicting = both_ways[both_ways["i"].map(labels).gt(both_ways["j"].map(labels))]
    for name, lookalikes in contradicting.groupby("i")["j"]:
        lines.append(f"note: {name} looks the same as {shorten_names(sorted(lookalikes))}, labelled normal")
    group = table.set_index("image_id")["group"].astype(str)
    is_apart = pairs["i"].map(group).to_numpy() != pairs["j"].map(group).to_numpy()
    if is_apart.any():
        is_stated = config.split.group_file is not None or config.split.group_pattern is not None
        owner = " of your own list" if is_stated else ""
        lines.append(f"note: {int(is_apart.sum())} pairs that look the same are in different groups{owner}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
