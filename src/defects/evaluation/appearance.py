"""What files and thumbnails show without any network: sizes, light, colour, sharpness, coarse structure."""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm.contrib.concurrent import thread_map

from defects.config import Config, resolve
from defects.config_data import DataConfig, DuplicateConfig
from defects.data.duplicates import group_ids, search_siblings
from defects.data.fold_files import DataTables
from defects.data.images import read_image
from defects.data.registration import thumbnail

SIDE = 128  # pixels, of the square thumbnails that are measured; a JPEG is decoded at about this size
CELLS = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]
BANDS = [2, 4, 8, 16, 32, 64]  # cycles per image: limits of the bands of the power spectrum
CYCLES = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE, 1 / SIDE)] * 2))  # of each term of a transform
BAND_OF = np.digitize(CYCLES, BANDS).ravel()  # 0 and len(BANDS): outside
WINDOW = np.outer(np.hanning(SIDE), np.hanning(SIDE))
MOST = 3000  # images of either side that are measured: enough for an AUROC to two decimals
TINY = 1e-6  # keeps logarithms of flat pictures finite
ABOUT = ["image_id", "test", "group"]  # columns that are no features
SETTING = ["width", "height", "width to height", "bytes per pixel", "brightness", "red against blue"]


def appearance_table(config: Config, tables: DataTables) -> pd.DataFrame:
    """A row for each of at most MOST images of a side: image_id, test, group (of siblings), and features.

    Siblings of either side share a group. Every image is read once, at SIDE x SIDE pixels. Features are
    floats; `format .png` and the like are 0, 1.
    """
    images, settings = _sample(tables.images), config.split.duplicates
    measure = partial(_measure_one, config.data, settings)
    rows = images.to_dict("records")
    found = thread_map(measure, rows, desc="measuring images", leave=False, disable=None)
    table = pd.DataFrame([features for features, _ in found])
    table = table.join(pd.get_dummies(images["path"].map(_format), dtype=float))
    table.insert(0, "image_id", images["image_id"])
    table.insert(1, "test", images["split"] == "test")
    table.insert(2, "group", _groups(tables.folds, images, np.stack([t for _, t in found]), settings))
    return table


def _sample(images: pd.DataFrame) -> pd.DataFrame:
    """The same random images every time."""
    parts = [rows.sample(min(MOST, len(rows)), random_state=0) for _, rows in images.groupby("split")]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def setting_features(table: pd.DataFrame) -> list[str]:
    """Those that a defect hardly moves: of the file, the size, the light."""
    return [name for name in table.columns if name in SETTING or name.startswith("format ")]


def _format(path: str) -> str:
    return f"format {Path(path).suffix.lower()}"


def _groups(
    folds: pd.DataFrame, images: pd.DataFrame, thumbnails: np.ndarray, settings: DuplicateConfig
) -> np.ndarray:
    """Of each image: groups of the folds, joined with siblings found among all images."""
    known = images["image_id"].map(folds.set_index("image_id")["group"])
    first = images.index.to_series().groupby(known).transform("first")
    pairs = pd.DataFrame({"i": first, "j": images.index}).dropna().astype(int)
    if settings.enabled:
        aspects = (images["width"] / images["height"]).to_numpy(dtype=float)
        siblings = search_siblings(thumbnails, settings, aspects=aspects).pairs
        pairs = pd.concat([pairs, siblings[["i", "j"]]])
    return group_ids(len(images), pairs)


def _measure_one(
    data: DataConfig, settings: DuplicateConfig, row: dict[str, Any]
) -> tuple[dict[str, float], np.ndarray]:
    """Features of a row of images.csv, and its thumbnail for the search for siblings."""
    width, height = row["width"], row["height"]
    path = resolve(data.root) / row["path"]
    image = read_image(path, (SIDE, SIDE), bits=data.bits)
    of_file = {
        "width": float(width),
        "height": float(height),
        "width to height": width / height,
        "bytes per pixel": path.stat().st_size / (width * height),
    }
    features = of_file | picture_features(image)
    if settings.ignore:
        scale = SIDE / np.array([height, width, height, width])
        top, left, bottom, right = np.rint(settings.ignore * scale).astype(int)
        image[top:bottom, left:right] = 0
    return features, thumbnail(image, settings.thumbnail_size)


def picture_features(image: np.ndarray) -> dict[str, float]:
    """Of RGB uint8 [SIDE, SIDE, 3]; grey levels and colours from 0 to 1."""
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
    return float(np.log10((above + TINY) / (below + TINY)))
