"""Second stage: group duplicates, cut leak-free folds, plan the oversampling."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from defects.config import Config, resolve
from defects.config_data import DuplicateConfig
from defects.data import balance, duplicates, folds
from defects.data.bounded_memory import allocate_array, in_threads
from defects.data.images import read_image
from defects.data.index import load_images, training_sha256
from defects.data.sibling_report import write_search
from defects.files import locked, read_csv, read_json, write_csv, write_json
from defects.messages import UserError
from defects.runs import FULL, fold_names
from defects.stamps import ABOUT_THE_INDEX, Stamp, content_of, differences, join_differences, settings_but

STRICTER = [0.95, 0.98, 0.99, 0.995, 0.999, 1.0]  # correlations tried where groups would be too few for folds
NOT_THE_FOLDS = ABOUT_THE_INDEX | {"data.image_size"}  # siblings are searched for on thumbnails


class DataTables(NamedTuple):
    """What a stage knows of a data set's images.

    `images` is images.csv; `folds` holds its training rows with group and fold, sorted by image_id.
    """

    images: pd.DataFrame
    folds: pd.DataFrame


def split(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """Write folds.csv (image_id, group, fold), the training lists, pairs.csv and siblings.json.

    `images` is images.csv. Returns the training images with group and fold. Raises UserError when a class is
    too rare.
    """
    with locked(config.dataset_dir, wait=True):
        return split_locked(config, images)


def load_tables(config: Config, images: pd.DataFrame | None = None) -> DataTables:
    """images.csv, unless it is given, and folds.csv.

    Raises UserError when they are missing or out of date.
    """
    if images is None:
        images = load_images(config)
    path = config.dataset_dir / "folds.csv"
    problem = find_folds_problem(config)
    if problem is not None:
        raise UserError(f"{path} {problem}: run src/split.py")
    table = read_csv(path, ["image_id", "group", "fold"], "src/split.py")[["image_id", "group", "fold"]]
    train = images[images["split"] == "train"]
    if sorted(table["image_id"]) != sorted(train["image_id"]):
        raise UserError(f"{path} does not list every training image once: run src/split.py again")
    folds = train.merge(table, on="image_id").sort_values("image_id", ignore_index=True)
    return DataTables(images, folds)


def find_folds_problem(config: Config) -> str | None:
    """Why folds.csv cannot be used as it is; None if it can."""
    if not (config.dataset_dir / "folds.csv").exists():
        return "is missing"
    found = differences(read_json(config.dataset_dir / "split.json"), _stamp(config))
    return f"was made otherwise ({join_differences(found)})" if found else None


def load_training_rows(config: Config, fold: str) -> pd.DataFrame:
    """train_fold<k>.csv or train_full.csv: image_id, angle, flip. UserError for an unknown fold."""
    if fold not in fold_names(config):
        raise UserError(f"--fold {fold}: the folds are 0 to {config.split.folds - 1} and {FULL}")
    return read_csv(training_list(config, fold), ["image_id", "angle", "flip"], "src/split.py")


def training_list(config: Config, fold: str) -> Path:
    return config.dataset_dir / (f"train_{FULL}.csv" if fold == FULL else f"train_fold{fold}.csv")


def split_locked(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """As `split`, for a caller that holds the lock of the data set's folder."""
    train = images[images["split"] == "train"].reset_index(drop=True)
    if train.empty:
        raise UserError(f"{config.dataset_dir / 'images.csv'} lists no training images: check data.root")
    pairs, search = search_duplicates(config, train)
    given = folds.given_groups(train, config.split)
    stricter = None
    if given is None:
        groups, fold, stricter = _group(config, train, pairs)
    else:
        groups = given.to_numpy()
        fold = folds.plan_folds(train, groups, config.data.classes, config.split)
    table = train.assign(group=groups, fold=fold)
    (config.dataset_dir / "split.json").unlink(missing_ok=True)  # half a split is no split
    write_search(config, train["image_id"].to_numpy(), search, stricter)
    _write(config, table, pairs)
    return table


def _group(
    config: Config, train: pd.DataFrame, pairs: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Group and fold of each image [N]; the least correlation of the pairs kept together, if not all are.

    The search for siblings alone must not leave fewer groups than folds, so weak pairs are dropped until it
    does not. Raises UserError where the images themselves are too few.
    """
    for stricter in [None, *STRICTER]:
        kept = pairs if stricter is None else pairs[pairs["correlation"] >= stricter]
        groups = duplicates.group_ids(len(train), kept)
        try:
            return groups, folds.plan_folds(train, groups, config.data.classes, config.split), stricter
        except UserError as error:
            last = error
    raise last


def find_duplicates(config: Config, train: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of `train` that show the same thing: i, j, kind (exact, sibling), correlation, flip."""
    return search_duplicates(config, train)[0]


def search_duplicates(
    config: Config, train: pd.DataFrame
) -> tuple[pd.DataFrame, duplicates.SiblingSearch | None]:
    """The pairs of find_duplicates, and what the search for siblings judged by, None if switched off."""
    settings = config.split.duplicates
    index = train.index.to_series()
    first = index.groupby(train["sha256"]).transform("first")
    pairs = pd.DataFrame({"i": first, "j": index})[first != index]
    pairs = pairs.assign(kind="exact", correlation=1.0, flip="none")
    if not settings.enabled:
        return pairs, None
    thumbnails, aspects = _thumbnails(config, train, settings)
    search = duplicates.search_siblings(thumbnails, settings, config.dataset_dir, aspects)
    pairs = pd.concat([pairs, search.pairs.assign(kind="sibling")])
    return pairs.drop_duplicates(["i", "j"], ignore_index=True), search


def _thumbnails(
    config: Config, train: pd.DataFrame, settings: DuplicateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, S, S], and widths over heights of the images [N]."""
    root = resolve(config.data.root)

    def one(path: str) -> tuple[np.ndarray, float]:
        image = read_image(root / path, bits=config.data.bits)
        if settings.ignore:
            top, left, bottom, right = settings.ignore
            image[top:bottom, left:right] = 0
        return duplicates.thumbnail(image, settings.thumbnail_size), image.shape[1] / image.shape[0]

    side = settings.thumbnail_size
    thumbnails = allocate_array((len(train), side, side), np.uint8, config.dataset_dir)
    aspects = np.ones(len(train))
    for place, (picture, aspect) in enumerate(in_threads(one, train["path"], text="thumbnails")):
        thumbnails[place] = picture
        aspects[place] = aspect
    return thumbnails, aspects


def _write(config: Config, table: pd.DataFrame, pairs: pd.DataFrame) -> None:
    folder, symmetries, plan = config.dataset_dir, config.data.symmetries, config.split.balance
    for surplus in folder.glob("train_*.csv"):
        surplus.unlink()
    ids = table["image_id"].to_numpy()
    write_csv(folder / "pairs.csv", pairs.assign(i=ids[pairs["i"]], j=ids[pairs["j"]]))
    for fold in fold_names(config):
        originals = table[table["fold"] != fold]
        rows = balance.training_rows(originals, symmetries, plan, config.split.seed)
        write_csv(training_list(config, fold), rows)
    write_csv(folder / "folds.csv", table[["image_id", "group", "fold"]])
    write_json(folder / "split.json", _stamp(config))


def _stamp(config: Config) -> Stamp:
    """What the folds depend on; a change of these means splitting again."""
    settings = settings_but(config.data, NOT_THE_FOLDS, "data.") | settings_but(config.split, set(), "split.")
    files = {"images.csv": training_sha256(config)}
    if config.split.group_file:
        files["split.group_file"] = content_of(config.split.group_file)
    return {"settings": settings, "files": files}
