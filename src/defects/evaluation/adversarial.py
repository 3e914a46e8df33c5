"""Adversarial validation: can a classifier distinguish training and test images, and by what?

Where it can, out-of-fold scores say little about the test images. All training images are compared with all
test images. Two things look like a shift and are none. Photographs of one object would be recognised
again: groups of siblings, also of training and test images together, stay in one part of the
cross-validation. And the test set may hold another share of defects: `defects_to_explain` is the least share
that would do.
"""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.inspection import permutation_importance
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm.contrib.concurrent import thread_map

from defects.config_schema import Config, DataConfig, DuplicateConfig, resolve
from defects.data.duplicates import group_ids, search_siblings
from defects.data.fold_files import DataTables
from defects.data.images import covered, read_image
from defects.data.registration import thumbnail
from defects.data.roi import Roi, load_roi
from defects.files import read_json
from defects.stamps import ABOUT_THE_INDEX, Stamp, content_of, differences, file_contents, settings_but

FEWEST = 20  # groups on either side; below it an AUROC means nothing

CV_FOLDS = 5  # of the cross-validation
REPEATS = 1000  # of the bootstrap
SEED = 0

# Images are measured at a size of their own.
NOT_THE_COMPARISON = ABOUT_THE_INDEX | {"data.image_size", "data.symmetries", "data.classes"}

FILE = "adversarial.json"  # of the data set's folder

DEGREES = {0.8: "clearly", 0.6: "partly", 0.0: "hardly"}  # from which AUROC they are distinguished so

NEAR_HALF = 0.05  # a feature whose AUROC is this near to 0.5 is neither higher nor lower
MEASURED_SIDE = (
    128  # pixels, of the square thumbnails that are measured; a JPEG is decoded at about this size
)
CELLS = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]
BANDS = [2, 4, 8, 16, 32, 64]  # cycles per image: limits of the bands of the power spectrum
CYCLES = np.hypot(
    *np.meshgrid(*[np.fft.fftfreq(MEASURED_SIDE, 1 / MEASURED_SIDE)] * 2)
)  # of each term of a transform
BAND_OF = np.digitize(CYCLES, BANDS).ravel()  # 0 and len(BANDS): outside
WINDOW = np.outer(np.hanning(MEASURED_SIDE), np.hanning(MEASURED_SIDE))
MOST_MEASURED = 3000  # training or test images that are measured: enough for an AUROC to two decimals
LOG_EPSILON = 1e-6  # keeps logarithms of flat pictures finite
NO_FEATURES = ["image_id", "test", "group"]  # columns that are no features
SETTING = ["width", "height", "width to height", "bytes per pixel", "brightness", "red against blue"]


def stored_comparison(config: Config) -> dict[str, Any] | None:
    """The comparison by `src/explore.py`; None if images, folds or settings have changed since."""
    comparison = read_json(config.dataset_dir / FILE) or {}
    return None if differences(comparison.get("inputs"), inputs(config)) else comparison


def inputs(config: Config) -> Stamp:
    """What a comparison depends on."""
    siblings = settings_but(config.split.duplicates, set(), "split.duplicates.")
    settings = settings_but(config.data, NOT_THE_COMPARISON, "data.") | siblings
    paths = [config.dataset_dir / name for name in ("images.csv", "folds.csv")]
    files = {path.name: content_of(path) for path in paths}
    return {"settings": settings, "files": files | file_contents(settings, config.data.root)}


def summarise_comparison(comparison: dict[str, Any]) -> str:
    """One line about the result of `compare_with_test`."""
    counts = f"{comparison['train']:,} training against {comparison['test']:,} test images"
    auroc = comparison["auroc"]
    if auroc is None:
        return f"{counts}: too few, or too few that are no siblings, to distinguish them"
    low, high = comparison["interval_90"]
    return f"{counts}: AUROC {auroc:.3f} (90 % interval {low:.3f} - {high:.3f}), {verdict(comparison)}"


def is_distinguished(comparison: dict[str, Any]) -> bool:
    """Whether training and test images can be told apart; the comparison has an AUROC."""
    return comparison["interval_90"][0] > 0.5


def verdict(comparison: dict[str, Any]) -> str:
    if not is_distinguished(comparison):
        return "they cannot be distinguished"
    degree = next(word for limit, word in DEGREES.items() if comparison["auroc"] >= limit)
    return f"they can {degree} be distinguished"


def compare_with_test(table: pd.DataFrame, share: float) -> dict[str, Any]:
    """Plain values about an `appearance_table`; of too few groups of either only how many images there are.

    auroc and interval_90: by all features; auroc_setting: by those that a defect hardly moves.
    defects_to_explain: a test set needs this share of defects, every one of them recognised, before defects
    alone could explain auroc (`share` is that of the training images). features, the most important first:
    name, importance (loss of AUROC when its values are shuffled), auroc (of its values alone: above 0.5
    where test images have higher ones), medians and words.
    """
    test = table["test"].to_numpy()
    comparison: dict[str, Any] = {"train": int((~test).sum()), "test": int(test.sum()), "auroc": None}
    groups = table.groupby("test")["group"].nunique().reindex([False, True], fill_value=0)
    if groups.min() < FEWEST:
        return comparison | {"features": []}
    split = StratifiedGroupKFold(CV_FOLDS, shuffle=True, random_state=SEED)
    parts = list(split.split(table, test, table["group"]))
    chance, importance = cross_validate(
        table, [name for name in table.columns if name not in NO_FEATURES], parts
    )
    setting, _ = cross_validate(table, setting_features(table), parts)
    auroc = float(roc_auc_score(test, chance))
    return comparison | {
        "auroc": auroc,
        "interval_90": bootstrap_auroc(test, chance, table["group"].to_numpy()),
        "auroc_setting": float(roc_auc_score(test, setting)),
        "training_share": share,
        "defects_to_explain": defects_to_explain(auroc, share),
        "features": sorted(
            (describe(table, name, loss) for name, loss in importance.items()),
            key=lambda feature: (-feature["importance"], -abs(feature["auroc"] - 0.5)),
        ),
    }


def defects_to_explain(auroc: float, share: float) -> float:
    """The least share of defects in the test set that could give `auroc` if normal images are all alike.

    No classifier does better than one that knows which images are defective, and those of the test set from
    those of the training set. It ranks training defects lowest, test defects highest, and guesses between
    normal images: with a share q its AUROC is (1 + share) / 2 + q (1 - share) / 2.
    """
    return float(np.clip((2 * auroc - 1 - share) / (1 - share), 0, 1))


def cross_validate(
    table: pd.DataFrame, columns: list[str], parts: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, dict[str, float]]:
    """Probability [N] that an image is of the test set, and the importance of each column.

    `parts`: training positions, validation positions.
    """
    values = table[columns].to_numpy()
    test = table["test"].to_numpy()
    chance = np.empty(len(table))
    losses = []
    for fitted, validation in parts:
        model = HistGradientBoostingClassifier(max_leaf_nodes=8, min_samples_leaf=5, random_state=SEED)
        model.fit(values[fitted], test[fitted])
        chance[validation] = model.predict_proba(values[validation])[:, 1]
        shuffled = permutation_importance(
            model, values[validation], test[validation], scoring="roc_auc", n_repeats=1, random_state=SEED
        )
        losses.append(shuffled.importances_mean)
    return chance, dict(zip(columns, np.mean(losses, axis=0).tolist(), strict=True))


def bootstrap_auroc(test: np.ndarray, chance: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """90 % interval when whole groups of siblings are drawn anew."""
    _, rank = np.unique(chance, return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(SEED)
    count = group.max() + 1
    drawn = []
    for _ in range(REPEATS):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[group]
        new, old = (np.bincount(rank, times * is_in_set) for is_in_set in (test, ~test))
        drawn.append(new @ (old.cumsum() - old / 2) / (new.sum() * old.sum()))
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)


def describe(table: pd.DataFrame, name: str, importance: float) -> dict[str, Any]:
    """How one feature differs between training and test images."""
    new = table.loc[table["test"], name]
    old = table.loc[~table["test"], name]
    auroc = float(roc_auc_score(table["test"], table[name]))
    middle = f"median {new.median():.3g} against {old.median():.3g}"
    if abs(auroc - 0.5) < NEAR_HALF:
        (a, b), (c, d) = (values.quantile([0.25, 0.75]) for values in (new, old))
        words = f"{name}: neither higher nor lower, middle half {a:.3g} to {b:.3g} against {c:.3g} to {d:.3g}"
    else:
        words = f"{name}: {'higher' if auroc > 0.5 else 'lower'} in the test images, {middle}"
    return {
        "name": name,
        "importance": importance,
        "auroc": auroc,
        "median_train": float(old.median()),
        "median_test": float(new.median()),
        "words": words,
    }


def appearance_table(config: Config, tables: DataTables) -> pd.DataFrame:
    """A row for each of at most MOST_MEASURED images of a split: image_id, test, group, features.

    Siblings share a group. Every image is read once, at MEASURED_SIDE x MEASURED_SIDE pixels. Features are
    floats; `format .png` and the like are 0, 1.
    """
    images = _sample(tables.images)
    settings = config.split.duplicates
    measure = partial(_measure_one, config.data, load_roi(config.data), settings)
    rows = images.to_dict("records")
    measured = thread_map(measure, rows, desc="measuring images", leave=False, disable=None)
    table = pd.DataFrame([features for features, _ in measured])
    table = table.join(pd.get_dummies(images["path"].map(_format), dtype=float))
    table.insert(0, "image_id", images["image_id"])
    table.insert(1, "test", images["split"] == "test")
    thumbnails = np.stack([picture for _, picture in measured])
    table.insert(2, "group", _groups(tables.folds, images, thumbnails, settings))
    return table


def _sample(images: pd.DataFrame) -> pd.DataFrame:
    """The same random images every time."""
    parts = [
        rows.sample(min(MOST_MEASURED, len(rows)), random_state=0) for _, rows in images.groupby("split")
    ]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def setting_features(table: pd.DataFrame) -> list[str]:
    """Those that a defect hardly moves: of the file, the size, the light."""
    return [name for name in table.columns if name in SETTING or name.startswith("format ")]


def _format(path: str) -> str:
    return f"format {Path(path).suffix.lower()}"


def _groups(
    folds: pd.DataFrame, images: pd.DataFrame, thumbnails: np.ndarray, settings: DuplicateConfig
) -> np.ndarray:
    """Of each image: groups of the folds, joined with siblings among all images."""
    fold_groups = images["image_id"].map(folds.set_index("image_id")["group"])
    first = images.index.to_series().groupby(fold_groups).transform("first")
    pairs = pd.DataFrame({"i": first, "j": images.index}).dropna().astype(int)
    if settings.enabled:
        aspects = (images["width"] / images["height"]).to_numpy(dtype=float)
        siblings = search_siblings(thumbnails, settings, aspects=aspects).pairs
        pairs = pd.concat([pairs, siblings[["i", "j"]]])
    return group_ids(len(images), pairs)


def _measure_one(
    data: DataConfig, roi: Roi | None, settings: DuplicateConfig, row: dict[str, Any]
) -> tuple[dict[str, float], np.ndarray]:
    """Features of a row of images.csv, and its thumbnail for the search for siblings."""
    width = row["width"]
    height = row["height"]
    path = resolve(data.root) / row["path"]
    image = read_image(path, (MEASURED_SIDE, MEASURED_SIDE), bits=data.bits)
    if roi is not None:
        image = covered(image, ~roi.read(row["path"], image.shape[:2]))
    of_file = {
        "width": float(width),
        "height": float(height),
        "width to height": width / height,
        "bytes per pixel": path.stat().st_size / (width * height),
    }
    features = of_file | picture_features(image)
    if settings.ignore:
        scale = MEASURED_SIDE / np.array([height, width, height, width])
        top, left, bottom, right = np.rint(settings.ignore * scale).astype(int)
        image[top:bottom, left:right] = 0
    return features, thumbnail(image, settings.thumbnail_size)


def picture_features(image: np.ndarray) -> dict[str, float]:
    """Of RGB uint8 [MEASURED_SIDE, MEASURED_SIDE, 3]; grey levels and colours from 0 to 1."""
    colours = image.astype(np.float32) / 255
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    dark, middle, bright = np.quantile(grey, [0.05, 0.5, 0.95])
    detail = cv2.Laplacian(grey, cv2.CV_32F).std()
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *order).std() for order in ((1, 0), (0, 1)))
    return {
        "brightness": float(middle),
        "brightness of the darkest 5 %": float(dark),
        "brightness of the brightest 5 %": float(bright),
        "contrast": float(grey.std()),
        "sharpness": _log_ratio(detail, grey.std()),
        "colour strength": float(np.ptp(colours, axis=2).mean()),
        "red against blue": float(np.median(colours[..., 0] - colours[..., 2])),
        "vertical against horizontal streaks": _log_ratio(across, down),
        **_cells(grey),
        **_bands(grey),
    }


def _cells(grey: np.ndarray) -> dict[str, float]:
    """Brightness of nine parts of the picture, less that of the whole."""
    means = cv2.resize(grey, (3, 3), interpolation=cv2.INTER_AREA).ravel() - grey.mean()
    return {f"light at the {name}": float(mean) for name, mean in zip(CELLS, means, strict=True)}


def _bands(grey: np.ndarray) -> dict[str, float]:
    """Logarithm of each band's share of the power spectrum."""
    power = np.abs(np.fft.fft2((grey - grey.mean()) * WINDOW)) ** 2
    sums = np.bincount(BAND_OF, power.ravel(), len(BANDS) + 1)[1:-1]
    names = [f"structure of {low} to {high} cycles" for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return {name: _log_ratio(part, power.sum()) for name, part in zip(names, sums, strict=True)}


def _log_ratio(above: float, below: float) -> float:
    return float(np.log10((above + LOG_EPSILON) / (below + LOG_EPSILON)))
