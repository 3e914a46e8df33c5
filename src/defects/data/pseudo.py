"""Pseudo-labels: test images that join the training side, labelled by models that may know nothing more.

A label for fold k comes from models of fold k alone, which have not seen that fold. Labels by an average
over the folds would carry what the other models learnt from fold k's answers into its new model, and its
out-of-fold scores would promise too much without anything looking wrong. For the same reason an image that
shows the object of a held-out one joins no list of that fold.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import Config, resolve
from defects.data.duplicates import group_ids
from defects.data.folds import given_groups
from defects.data.prepare import load_images
from defects.data.split import find_duplicates, load_folds
from defects.errors import UserError
from defects.files import read_csv, read_json, write_csv, write_json
from defects.writing import sha256

COLUMNS = ["image_id", "fold", "label", "agreement", "group"]


def refuse_classes(config: Config) -> None:
    if config.data.classes:
        raise UserError("data.classes: pseudo-labels tell only whether there is a defect; leave them out")


def write_pseudo(config: Config, path: Path, table: pd.DataFrame, about: dict) -> None:
    """`table` (COLUMNS) and, beside it, what it was made from: `about` and the sha256 of images and folds."""
    write_csv(path, table[COLUMNS].sort_values(["image_id", "fold"], kind="stable"))
    write_json(path.with_suffix(".json"), about | {"table": sha256(path)} | _stamp(config))


def load_pseudo(config: Config, fold: str) -> pd.DataFrame:
    """Rows of images.csv for the pseudo-labels of `fold` in train.pseudo, with their label, group and fold.

    Raises UserError unless the file is whole and was made for the present images and folds.
    """
    refuse_classes(config)
    path, again = resolve(config.train.pseudo), "src/pseudo.py"
    table = read_csv(path, COLUMNS, again)
    made, now = read_json(path.with_suffix(".json")) or {}, {"table": sha256(path)} | _stamp(config)
    wrong = [name for name, value in now.items() if made.get(name) != value]
    if wrong:
        raise UserError(
            f"train.pseudo={path} was made from something else ({', '.join(wrong)} differ): run {again} again"
        )
    labels = table[table["fold"] == fold].drop(columns=["fold", "agreement"])
    images = load_images(config).drop(columns="label").assign(mask_path="")
    return images.merge(labels, on="image_id", validate="one_to_one").astype({"label": "Int64"})


def groups_of_test(config: Config, ids: pd.Series) -> pd.Series:
    """Group in folds.csv of each test image of `ids`, by image_id; a name of its own where it has none.

    Left out are images that show the object of several groups at once. The search for photographs of one
    object runs over the training images and these; groups that the user states count as well.
    """
    train, images = load_folds(config), load_images(config)
    rows = pd.concat([train, images[images["image_id"].isin(ids)]], ignore_index=True)
    pairs = [find_duplicates(config, rows)[["i", "j"]], _pairs_within(train["group"])]
    stated = given_groups(rows, config.split)
    if stated is not None:
        pairs.append(_pairs_within(stated))
    rows["component"] = group_ids(len(rows), pd.concat(pairs))
    known = rows[: len(train)].groupby("component")["group"]
    added = rows[len(train) :]
    added = added[added["component"].map(known.nunique()).fillna(1) == 1]
    own = "test " + added.groupby("component")["image_id"].transform("first")
    return added["component"].map(known.first()).fillna(own).set_axis(added["image_id"])


def without_siblings(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """`table` (image_id, fold, ...) with groups, less the images that show what is held out in their fold."""
    groups, folds = groups_of_test(config, table["image_id"]), load_folds(config)
    table = table.assign(group=table["image_id"].map(groups))
    held = folds.drop_duplicates(["group", "fold"])[["group", "fold"]]
    joined = table.merge(held, on=["group", "fold"], how="left", indicator=True)
    return table[(joined["_merge"] == "left_only").to_numpy() & table["group"].notna().to_numpy()]


def agreed(probabilities: pd.DataFrame, positive: float, negative: float) -> pd.DataFrame:
    """image_id, label, agreement of the images that every member is sure of.

    `probabilities` holds a column for each member, by image_id. Agreement is the least probability that a
    member gives to the label.
    """
    least, most = probabilities.min(axis=1), probabilities.max(axis=1)
    label = np.where(least >= positive, 1, 0)
    table = pd.DataFrame({"label": label, "agreement": np.where(label == 1, least, 1 - most)}, least.index)
    return table[(label == 1) | (most <= negative)].rename_axis("image_id").reset_index()


def _pairs_within(groups: pd.Series) -> pd.DataFrame:
    """Each row and the first of its group: i, j."""
    index = groups.index.to_series()
    return pd.DataFrame({"i": index.groupby(groups).transform("first"), "j": index})


def _stamp(config: Config) -> dict[str, str]:
    return {name: sha256(config.dataset_dir / name) for name in ("images.csv", "folds.csv")}
