"""A folder of images with annotations, and what prepare makes of it, for tests of annotation formats."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import data_in, texture, write_png

from defects.config_schema import Config
from defects.data.index import prepare
from defects.data.labels import read_masks
from defects.messages import UserError

WIDTH, HEIGHT = 12, 9  # of the images
# Two rectangles of whole pixels: x, y, width, height.
FIRST = (2, 3, 4, 2)
SECOND = (7, 1, 3, 6)


def rectangle(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """bool [HEIGHT, WIDTH]: what the boxes mark."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def corners(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def write_images(root: Path, *names: str) -> Path:
    """Different pictures of WIDTH x HEIGHT in images/; returns `root`."""
    for seed, name in enumerate(names):
        write_png(root / "images" / name, texture(seed)[:HEIGHT, :WIDTH])
    return root


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_values(path: Path, values: object) -> Path:
    """As JSON."""
    return write_text(path, json.dumps(values))


def annotated_config(root: Path, annotations: str, **settings: object) -> Config:
    """Of the images in root/images; `settings` of the section data."""
    folders = {"normal": None, "images": "images"} | settings.pop("folders", {})
    data = data_in(root, annotations=annotations, folders=folders, **settings)
    return Config(experiment="run", output=root.parent / "output", data=data, model={"name": "segmenter"})


def prepare_annotated(root: Path, annotations: str, **settings: object) -> pd.DataFrame:
    """images.csv by file name."""
    images = prepare(annotated_config(root, annotations, **settings))
    return images.set_index(images["path"].str.rpartition("/")[2])


def masks_of(root: Path, annotations: str, **settings: object) -> dict[str, np.ndarray | None]:
    """bool [H, W] by file name, of all defects; None where nothing is marked."""
    images = prepare_annotated(root, annotations, **settings)
    masks = {}
    for name, row in images.iterrows():
        mask = read_masks(row.to_dict(), root, [])
        masks[name] = None if mask is None else mask[..., 0].astype(bool)
    return masks


def prepare_error(root: Path, annotations: str, **settings: object) -> str:
    """The message, which has to be one line."""
    with pytest.raises(UserError) as caught:
        prepare_annotated(root, annotations, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


Check = Callable[..., None]
