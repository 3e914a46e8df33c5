"""Second stage: group duplicates, cut leak-free folds, plan the oversampling."""

from pathlib import Path

import numpy as np
import pandas as pd

from defects.config import Config, resolve
from defects.config_data import DuplicateConfig
from defects.data import balance, duplicates, folds
from defects.data.images import read_image
from defects.data.many import in_threads, room
from defects.data.prepare import load_images, training_sha256
from defects.errors import UserError
from defects.files import locked, read_csv, read_json, write_csv, write_json
from defects.stamps import ABOUT_THE_INDEX, Stamp, content_of, differences, in_short, settings_but

FULL = "full"  # the training list of everything, for the final fit
NOT_THE_FOLDS = ABOUT_THE_INDEX | {"data.image_size"}  # siblings are searched for on thumbnails


def split(config: Config) -> pd.DataFrame:
    """Write folds.csv (image_id, group, fold), train_fold<k>.csv, train_full.csv and pairs.csv.

    Returns the training images with group and fold. Raises UserError when a class is too rare.
    """
    images = load_images(config)
    with locked(config.dataset_dir, wait=True):
        return _split(config, images[images["split"] == "train"].reset_index(drop=True))


def load_folds(config: Config) -> pd.DataFrame:
    """images.csv's training rows with group and fold; split first, and said so, when out of date."""
    images = load_images(config)
    path = config.dataset_dir / "folds.csv"
    with locked(config.dataset_dir, wait=True):
        found = differences(read_json(config.dataset_dir / "split.json"), _stamp(config))
        if found or not path.exists():
            reason = f"was made otherwise ({in_short(found)})" if path.exists() else "is missing"
            print(f"{path} {reason}: splitting first")
            _split(config, images[images["split"] == "train"].reset_index(drop=True))
    table = read_csv(path, ["image_id", "group", "fold"], "src/split.py")[["image_id", "group", "fold"]]
    train = images[images["split"] == "train"]
    if sorted(table["image_id"]) != sorted(train["image_id"]):
        raise UserError(f"{path} does not list every training image once: run src/split.py again")
    return train.merge(table, on="image_id").sort_values("image_id", ignore_index=True)


def fold_names(config: Config) -> list[str]:
    return [*map(str, range(config.split.folds)), FULL]


def load_training_rows(config: Config, fold: str) -> pd.DataFrame:
    """train_fold<k>.csv or train_full.csv: image_id, angle, flip. UserError for an unknown fold."""
    if fold not in fold_names(config):
        raise UserError(f"--fold {fold}: the folds are 0 to {config.split.folds - 1} and {FULL}")
    return read_csv(training_list(config, fold), ["image_id", "angle", "flip"], "src/split.py")


def training_list(config: Config, fold: str) -> Path:
    return config.dataset_dir / (f"train_{FULL}.csv" if fold == FULL else f"train_fold{fold}.csv")


def _split(config: Config, train: pd.DataFrame) -> pd.DataFrame:
    if train.empty:
        raise UserError(f"{config.dataset_dir / 'images.csv'} lists no training images: check data.root")
    pairs = find_duplicates(config, train)
    given = folds.given_groups(train, config.split)
    groups = duplicates.group_ids(len(train), pairs) if given is None else given.to_numpy()
    fold = folds.plan_folds(train, groups, config.data.classes, config.split)
    table = train.assign(group=groups, fold=fold)
    _write(config, table, pairs)
    return table


def find_duplicates(config: Config, train: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of `train` that show the same thing: i, j, kind (exact, sibling), correlation, flip."""
    settings = config.split.duplicates
    index = train.index.to_series()
    first = index.groupby(train["sha256"]).transform("first")
    pairs = pd.DataFrame({"i": first, "j": index})[first != index]
    pairs = pairs.assign(kind="exact", correlation=1.0, flip="none")
    if not settings.enabled:
        return pairs
    thumbnails = _thumbnails(config, train, settings)
    siblings = duplicates.find_siblings(thumbnails, settings, config.dataset_dir).assign(kind="sibling")
    return pd.concat([pairs, siblings]).drop_duplicates(["i", "j"], ignore_index=True)


def _thumbnails(config: Config, train: pd.DataFrame, settings: DuplicateConfig) -> np.ndarray:
    root = resolve(config.data.root)

    def one(path: str) -> np.ndarray:
        image = read_image(root / path, bits=config.data.bits)
        if settings.ignore:
            top, left, bottom, right = settings.ignore
            image[top:bottom, left:right] = 0
        return duplicates.thumbnail(image, settings.thumbnail_size)

    side = settings.thumbnail_size
    thumbnails = room((len(train), side, side), np.uint8, config.dataset_dir)
    for place, picture in zip(thumbnails, in_threads(one, train["path"], text="thumbnails"), strict=True):
        place[:] = picture
    return thumbnails


def _write(config: Config, table: pd.DataFrame, pairs: pd.DataFrame) -> None:
    folder, symmetries, plan = config.dataset_dir, config.data.symmetries, config.split.balance
    (folder / "split.json").unlink(missing_ok=True)  # so a half-written split is never taken for a whole one
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
