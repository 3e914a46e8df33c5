"""The Severstal layout: train_images, train.csv with run-length masks of several classes, test_images."""

from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.labels import class_columns
from defects.data.listing import Listing, MaskNotes, RoleFolder, leave_out_masks, make_rows, open_folders
from defects.data.rle import RLE_COLUMNS, all_pairs, read_annotations
from defects.messages import UserError, shorten_names


def list_data(data: DataConfig) -> Listing:
    """Ids are file names; an image that train.csv does not name is clean. Test images may be absent.

    A training image of the same name as a test image has the id `train_images/<name>`. `kind` holds the
    classes of an image joined by `+`. Raises UserError for rows without an image.
    """
    if not data.classes:
        raise UserError("data.classes is empty: name the classes that train.csv tells apart, such as [1, 2]")
    root = resolve(data.root)
    annotations = root / "train.csv"
    folders = [RoleFolder("normal", root / "train_images", "train_images")]
    if (root / "test_images").is_dir():
        folders.append(RoleFolder("test", root / "test_images", "test_images"))
    opened = open_folders(folders)
    mask_notes = MaskNotes(root)
    tables = {}
    for folder in opened:
        split, label = ("test", None) if folder.role == "test" else ("train", 0)
        tables[split] = make_rows(data, folder.images, folder.path, split, label)
        leave_out_masks(folder, mask_notes)
    train = tables["train"]
    notes = mask_notes.lines()
    runs = read_annotations(annotations, data.classes, set(train["image_id"]), data.unlisted_classes)
    _check_images(runs, set(train["image_id"]), annotations)
    train, runs = _without_unlisted(data, train, runs, notes)
    repeated = int(runs[runs["runs"] != ""].duplicated(RLE_COLUMNS[:2]).sum())
    if repeated:
        notes.append(f"{repeated} rows of {annotations.name} mark more of an image and class, and are united")
    if "test" not in tables:
        return Listing(
            _with_classes(train, runs, data.classes, notes), None, runs, annotations, opened, notes
        )
    test = tables["test"]
    shared_ids = set(train["image_id"]) & set(test["image_id"])
    new_ids = {name: f"train_images/{name}" for name in shared_ids}
    train = train.assign(image_id=train["image_id"].replace(new_ids))
    runs = runs.assign(image_id=runs["image_id"].replace(new_ids))
    test = test.assign(**dict.fromkeys(class_columns(data.classes), ""))
    images = pd.concat([_with_classes(train, runs, data.classes, notes), test], ignore_index=True)
    return Listing(images, None, runs, annotations, opened, notes)


def _without_unlisted(
    data: DataConfig, train: pd.DataFrame, runs: pd.DataFrame, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without rows of classes that data.classes leaves out, and images that have defects of these alone."""
    is_listed = runs["target"].isin(data.classes).to_numpy()
    if is_listed.all():
        return train, runs
    is_marked = (runs["runs"] != "").to_numpy()
    with_unlisted = set(runs.loc[~is_listed & is_marked, "image_id"])
    dropped = with_unlisted - set(runs.loc[is_listed & is_marked, "image_id"])
    names = shorten_names(sorted(set(runs.loc[~is_listed, "target"])))
    notes.append(
        f"{int((~is_listed).sum())} rows of the classes {names}, which data.classes does not list, are left "
        f"out, and {len(dropped)} images with no other defects"
    )
    remaining_images = train[~train["image_id"].isin(dropped)].reset_index(drop=True)
    return remaining_images, runs[is_listed & ~runs["image_id"].isin(dropped).to_numpy()]


def _with_classes(
    train: pd.DataFrame, runs: pd.DataFrame, classes: list[str], notes: list[str]
) -> pd.DataFrame:
    """The rows with label and kind, and the run-length mask of each class."""
    marked_classes = set(runs.loc[runs["runs"] != "", "target"])
    absent = [name for name in classes if name not in marked_classes]
    if absent:
        notes.append(f"no training image has a defect of class {', '.join(absent)}")
    masks = all_pairs(runs, train["image_id"], classes)["runs"].to_numpy(dtype=object)
    masks = masks.reshape(len(train), len(classes))
    kinds = []
    for texts in masks:
        kinds.append("+".join(name for name, text in zip(classes, texts, strict=True) if text))
    label = pd.array([int(kind != "") for kind in kinds], "Int64")
    return train.assign(label=label, kind=kinds, **dict(zip(class_columns(classes), masks.T, strict=True)))


def _check_images(runs: pd.DataFrame, image_ids: set[str], annotations: Path) -> None:
    without_image = runs[~runs["image_id"].isin(image_ids)]
    if len(without_image):
        count = without_image["image_id"].nunique() - 1
        more = f" (and {count} more such images)" if count else ""
        place = f"row {without_image.index[0] + 2}: {without_image['image_id'].iloc[0]}"
        raise UserError(f"{annotations}: {place} is not in train_images{more}: add it or remove its rows")
