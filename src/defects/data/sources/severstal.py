"""The Severstal layout: train_images, train.csv with run-length masks of several classes, test_images."""

from pathlib import Path

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import list_images
from defects.data.labels import class_columns
from defects.data.rle_table import all_pairs, read_rle_table
from defects.data.sources.listing import Listing, rows
from defects.errors import UserError


def list_data(data: DataConfig) -> Listing:
    """Ids are file names; an image that train.csv does not name is clean. Test images may be absent.

    A training image of the same name as a test image has the id `train_images/<name>`. `kind` holds the
    classes of an image joined by `+`. Raises UserError for rows without an image.
    """
    if not data.classes:
        raise UserError("data.classes is empty: name the classes that train.csv tells apart, such as [1, 2]")
    root = resolve(data.root)
    annotations = root / "train.csv"
    train = rows(data, list_images(root / "train_images"), root / "train_images", "train", 0)
    runs = read_rle_table(annotations, data.classes)
    _check_images(runs, set(train["image_id"]), annotations)
    if not (root / "test_images").is_dir():
        return Listing(_with_classes(train, runs, data.classes), None, runs, annotations)
    test = rows(data, list_images(root / "test_images"), root / "test_images", "test", None)
    taken = {name: f"train_images/{name}" for name in set(train["image_id"]) & set(test["image_id"])}
    train, runs = (table.assign(image_id=table["image_id"].replace(taken)) for table in (train, runs))
    test = test.assign(**dict.fromkeys(class_columns(data.classes), ""))
    images = pd.concat([_with_classes(train, runs, data.classes), test], ignore_index=True)
    return Listing(images, None, runs, annotations)


def _with_classes(train: pd.DataFrame, runs: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    absent = [name for name in classes if not ((runs["target"] == name) & (runs["runs"] != "")).any()]
    if absent:
        print(f"note: no training image has a defect of class {', '.join(absent)}")
    masks = all_pairs(runs, train["image_id"], classes)["runs"].to_numpy(dtype=object)
    masks = masks.reshape(len(train), len(classes))
    kinds = ["+".join(name for name, text in zip(classes, row, strict=True) if text) for row in masks]
    label = pd.array([int(kind != "") for kind in kinds], "Int64")
    return train.assign(label=label, kind=kinds, **dict(zip(class_columns(classes), masks.T, strict=True)))


def _check_images(table: pd.DataFrame, known: set[str], annotations: Path) -> None:
    missing = table[~table["image_id"].isin(known)]
    if len(missing):
        others = missing["image_id"].nunique() - 1
        more = f" (and {others} more such images)" if others else ""
        place = f"row {missing.index[0] + 2}: {missing['image_id'].iloc[0]}"
        raise UserError(f"{annotations}: {place} is not in train_images{more}: add it or remove its rows")
