"""VisA as it is downloaded: <object>/Data/{Images/{Normal,Anomaly},Masks/Anomaly}, split_csv/*.csv."""

from pathlib import Path
from typing import Literal

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import list_categories
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_by_role,
    make_rows,
    open_folders,
    separate_test,
)
from defects.data.user_tables import read_user_table
from defects.messages import UserError, shorten_names
from defects.settings import Section

COLUMNS = ["object", "split", "label", "image", "mask"]
SPLITS = ("train", "test")


class Settings(Section):
    """Which of the authors' splits: one class learns from normal images alone, two classes from both."""

    protocol: Literal["1cls", "2cls_highshot", "2cls_fewshot"] = "1cls"


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below the folder of the object, such as Data/Images/Normal/0000.JPG.

    data.root is the folder of one object; the table of the split lies beside it. Raises UserError without the
    table, and for images that it does not list.
    """
    root = resolve(data.root)
    names = list_categories(root)
    if names:
        raise UserError(f"{root} holds several objects: name one with --category ({shorten_names(names)})")
    opened = open_folders(
        [
            RoleFolder("normal", root / "Data/Images/Normal", "Data/Images/Normal"),
            RoleFolder("abnormal", root / "Data/Images/Anomaly", "Data/Images/Anomaly"),
            RoleFolder("masks", root / "Data/Masks/Anomaly", "Data/Masks/Anomaly"),
        ]
    )
    by_role = {folder.role: folder for folder in opened}
    tables = {
        "normal": make_rows(data, by_role["normal"].images, root, "train", 0),
        "abnormal": make_rows(data, by_role["abnormal"].images, root, "train", 1),
    }
    notes = MaskNotes(root)
    images = pd.concat(attach_by_role(data, tables, by_role, notes).values(), ignore_index=True)
    split_file = root.parent / "split_csv" / f"{data.visa.protocol}.csv"
    splits = _read_splits(split_file, root.name)
    unlisted = images.loc[~images["image_id"].isin(splits.keys()), "image_id"]
    if len(unlisted):
        raise UserError(f"{split_file} does not list {shorten_names(unlisted)}: unpack the whole data set")
    images = images.assign(split=images["image_id"].map(splits))
    lines = notes.lines()
    missing = sorted(splits.keys() - set(images["image_id"]))
    if missing:
        lines.append(f"{len(missing)} images of {split_file.name} are not here: {shorten_names(missing)}")
    by_split = dict(list(images.groupby("split")))
    if "train" not in by_split:
        raise UserError(f"{split_file} lists no training image of {root.name} that is here")
    listed, answers = separate_test(by_split, data.use_test_as)
    return Listing(listed, answers, folders=opened, notes=lines)


def _read_splits(path: Path, name: str) -> dict[str, str]:
    """`train` or `test` for each image of the object `name`, by its path below the object's folder."""
    table = read_user_table(path, COLUMNS)
    if not set(COLUMNS[:4]) <= set(table.columns):
        raise UserError(
            f"{path} has the columns {shorten_names(table.columns)}; expected {', '.join(COLUMNS)}"
        )
    rows = table[table["object"] == name]
    if rows.empty:
        raise UserError(f"{path} lists no images of {name}: data.root must be the folder of an object")
    wrong = rows[~rows["split"].isin(SPLITS)]
    if len(wrong):
        raise UserError(
            f"{path}: row {wrong.index[0] + 2} has the split {wrong['split'].iloc[0]!r}: write train or test"
        )
    paths = [image.removeprefix(f"{name}/") for image in rows["image"]]
    return dict(zip(paths, rows["split"], strict=True))
