"""Second stage: group duplicates, make leak-free folds, plan the oversampling; its files and their readers.

folds.csv and the training lists are what training works on; pairs.csv and siblings.json say for people what
was taken for one object, and why.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defects.config_schema import Config, DuplicateConfig, resolve
from defects.data import duplicates
from defects.data.bounded_memory import allocate_array, in_threads
from defects.data.folds import find_stated_groups, make_training_rows, plan_folds
from defects.data.images import covered, read_image
from defects.data.index import load_images, training_sha256
from defects.data.roi import load_roi
from defects.files import locked, read_csv, read_json, write_csv, write_json
from defects.messages import UserError
from defects.runs import FULL, fold_names
from defects.stamps import (
    ABOUT_THE_INDEX,
    Stamp,
    content_of,
    differences,
    file_contents,
    join_differences,
    settings_but,
)

STRICTER = [0.95, 0.98, 0.99, 0.995, 0.999, 1.0]  # correlations tried where groups would be too few for folds
SEARCH_FILE = "siblings.json"
STAMP_FILE = "split.json"
EDGES = np.linspace(0, 5, 101)  # of its histograms, in Fisher transforms of correlations
CLOSEST_APART = 12  # pairs not joined that it lists, for a person to check
ADVICE = "name photographs that belong together in split.group_file or split.group_pattern"
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


def split_locked(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """As `split`, for a caller that holds the lock of the data set's folder."""
    folder = config.dataset_dir
    train = images[images["split"] == "train"].reset_index(drop=True)
    if train.empty:
        raise UserError(f"{folder / 'images.csv'} lists no training images: check data.root")
    pairs, search = _search_duplicates(config, train)
    stated_groups = find_stated_groups(train, config.split)
    stricter = None
    if stated_groups is None:
        groups, fold, stricter = _group(config, train, pairs)
    else:
        groups = stated_groups.to_numpy()
        fold = plan_folds(train, groups, config.data.classes, config.split)
    table = train.assign(group=groups, fold=fold)
    # Gone first, written last: half a split is no split.
    (folder / STAMP_FILE).unlink(missing_ok=True)
    ids = train["image_id"].to_numpy()
    write_search(config, ids, search, stricter)
    for path in folder.glob("train_*.csv"):
        path.unlink()
    write_csv(folder / "pairs.csv", pairs.assign(i=ids[pairs["i"]], j=ids[pairs["j"]]))
    for name in fold_names(config):
        originals = table[table["fold"] != name]
        rows = make_training_rows(originals, config.data.symmetries, config.split.balance, config.split.seed)
        write_csv(training_list(config, name), rows)
    write_csv(folder / "folds.csv", table[["image_id", "group", "fold"]])
    write_json(folder / STAMP_FILE, _stamp(config))
    return table


def _group(
    config: Config, train: pd.DataFrame, pairs: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Group and fold of each image [N]; the least correlation of the pairs that count, if not all do.

    The search for siblings alone must not leave fewer groups than folds, so weak pairs are dropped until it
    does not. Raises UserError where the images themselves are too few.
    """
    for stricter in [None, *STRICTER]:
        strong_pairs = pairs if stricter is None else pairs[pairs["correlation"] >= stricter]
        groups = duplicates.group_ids(len(train), strong_pairs)
        try:
            return groups, plan_folds(train, groups, config.data.classes, config.split), stricter
        except UserError as error:
            last_error = error
    raise last_error


def read_grouping(config: Config) -> str:
    """How the groups of folds.csv were made: stated (by settings), searched, or copies (of files alone)."""
    stamp = read_json(config.dataset_dir / STAMP_FILE) or {}
    settings = stamp.get("settings", {})
    if settings.get("split.group_file") is not None or settings.get("split.group_pattern") is not None:
        return "stated"
    return "searched" if settings.get("split.duplicates.enabled", True) else "copies"


def find_duplicates(config: Config, train: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of `train` that show the same thing: i, j, kind (exact, sibling), correlation, flip."""
    return _search_duplicates(config, train)[0]


def _search_duplicates(
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
    side = settings.thumbnail_size
    roi = load_roi(config.data)

    def read_thumbnail(path: str) -> tuple[np.ndarray, float]:
        image = read_image(root / path, bits=config.data.bits)
        if roi is not None:
            image = covered(image, ~roi.read(path, image.shape[:2]))
        if settings.ignore:
            top, left, bottom, right = settings.ignore
            image[top:bottom, left:right] = 0
        return duplicates.thumbnail(image, side), image.shape[1] / image.shape[0]

    thumbnails = allocate_array((len(train), side, side), np.uint8, config.dataset_dir)
    aspects = np.ones(len(train))
    for place, (picture, aspect) in enumerate(in_threads(read_thumbnail, train["path"], text="thumbnails")):
        thumbnails[place] = picture
        aspects[place] = aspect
    return thumbnails, aspects


def _stamp(config: Config) -> Stamp:
    """What the folds depend on; a change of these means splitting again."""
    settings = settings_but(config.data, NOT_THE_FOLDS, "data.") | settings_but(config.split, set(), "split.")
    files = {"images.csv": training_sha256(config)}
    if config.split.group_file:
        files["split.group_file"] = content_of(config.split.group_file)
    return {"settings": settings, "files": files | file_contents(settings, config.data.root)}


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
    changes = differences(read_json(config.dataset_dir / STAMP_FILE), _stamp(config))
    return f"was made otherwise ({join_differences(changes)})" if changes else None


def load_training_rows(config: Config, fold: str) -> pd.DataFrame:
    """train_fold<k>.csv or train_full.csv: image_id, angle, flip. UserError for an unknown fold."""
    if fold not in fold_names(config):
        raise UserError(f"--fold {fold}: the folds are 0 to {config.split.folds - 1} and {FULL}")
    return read_csv(training_list(config, fold), ["image_id", "angle", "flip"], "src/split.py")


def training_list(config: Config, fold: str) -> Path:
    return config.dataset_dir / (f"train_{FULL}.csv" if fold == FULL else f"train_fold{fold}.csv")


def write_search(
    config: Config, ids: np.ndarray, search: duplicates.SiblingSearch | None, stricter: float | None
) -> None:
    """siblings.json in the data set's folder; none where the search is switched off.

    `ids` [N] are those of the images searched. `stricter` is the correlation that pairs needed where all
    would have given too few groups for the folds.
    """
    path = config.dataset_dir / SEARCH_FILE
    if search is None:
        path.unlink(missing_ok=True)
        return
    joined = pd.MultiIndex.from_frame(search.pairs[["i", "j"]])
    is_joined = pd.MultiIndex.from_frame(search.compared[["i", "j"]]).isin(joined)
    apart = search.compared[~is_joined].sort_values("correlation", ascending=False, kind="stable")
    closest_apart = []
    for i, j, correlation, flip in apart[["i", "j", "correlation", "flip"]].to_numpy()[:CLOSEST_APART]:
        closest_apart.append([str(ids[i]), str(ids[j]), correlation, flip])
    values = {
        "kind": search.kind,
        "threshold": search.threshold,
        "chance_level": search.chance_level,
        "stricter": stricter,
        "compared": _histogram(search.compared["correlation"].to_numpy()),
        "different": _histogram(search.different),
        "closest_apart": closest_apart,
    }
    write_json(path, values)


def load_search(config: Config) -> dict[str, Any] | None:
    """The values of siblings.json, or None where the search is switched off."""
    return read_json(config.dataset_dir / SEARCH_FILE)


def describe_search(config: Config) -> list[str]:
    """How the threshold was chosen, and notes about what it may have missed."""
    search = load_search(config)
    if search is None:
        return ["split.duplicates.enabled=false: only exact copies are kept together"]
    threshold = format_correlation(search["threshold"])
    chance_level = format_correlation(search["chance_level"])
    if search["kind"] == "few":
        lines = [
            "note: too few images to tell what different objects have in common: only pairs above",
            f"      {threshold} are taken for one object; {ADVICE}",
        ]
    elif search["kind"] == "alike":
        lines = [
            f"note: the images look alike (different objects correlate up to {chance_level}): only pairs",
            f"      that stand out from all others, most above {threshold}, are taken for one object;",
            f"      {ADVICE}",
        ]
    else:
        lines = [
            f"pairs above {threshold} are taken for one object; "
            f"different objects of this set correlate up to {chance_level}"
        ]
    if search["stricter"] is not None:
        lines += [
            f"note: their groups would be too few for split.folds={config.split.folds}: only pairs above",
            f"      {format_correlation(search['stricter'])} are kept together (fewer folds keep more)",
        ]
    return lines


def format_correlation(value: float) -> str:
    """With the more digits, the closer to 1 it is."""
    digits = 2 if value < 0.9 else 3 if value < 0.99 else 4
    return f"{value:.{digits}f}"


def _histogram(correlations: np.ndarray) -> list[int]:
    """Counts between EDGES; what lies outside counts in the first and last one."""
    agreements = np.arctanh(np.clip(correlations, np.tanh(EDGES[0]), np.tanh(EDGES[-1])))
    return np.histogram(np.clip(agreements, EDGES[0], EDGES[-1]), EDGES)[0].tolist()
