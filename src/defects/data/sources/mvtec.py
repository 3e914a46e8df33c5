"""MVTec AD layout: train/good, test/<kind>, ground_truth/<kind>/<name>_mask.png."""

from pathlib import Path

import pandas as pd

from defects.config import categories, resolve
from defects.config_data import DataConfig
from defects.data.images import list_images
from defects.data.sources.listing import Listing, attach_masks, rows
from defects.errors import UserError


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below the category's folder.

    The labelled test images are test images with an answer key, as the papers use them, or join the
    training side with `data.use_test_as: train` (then a classifier has defects to learn from).
    """
    root = resolve(data.root)
    inside = categories(data)
    if inside and not (root / "train").is_dir():
        raise UserError(f"{root} holds several categories: name one with --category ({', '.join(inside)})")
    good = rows(data, list_images(root / "train" / "good"), root, "train", 0)
    test = pd.concat([_kind(data, folder.name) for folder in _kinds(root / "test")], ignore_index=True)
    if data.use_test_as == "train":
        return Listing(pd.concat([good, test.assign(split="train")], ignore_index=True))
    answers = test[["image_id", "label", "kind", "mask_path"]]
    hidden = test.assign(label=pd.array([None] * len(test), "Int64"), mask_path="", kind="")
    return Listing(pd.concat([good, hidden], ignore_index=True), answers)


def _kinds(folder: Path) -> list[Path]:
    kinds = sorted(path for path in folder.glob("*") if path.is_dir() and path.name[0] != ".")
    if not kinds:
        raise UserError(f"{folder} holds no folders of test images (test/good, test/<kind>): check data.root")
    return kinds


def _kind(data: DataConfig, kind: str) -> pd.DataFrame:
    root = resolve(data.root)
    folder, masks = root / "test" / kind, root / "ground_truth" / kind
    if kind == "good":
        return rows(data, list_images(folder), root, "test", 0, "good")
    table = rows(data, list_images(folder), root, "test", 1, kind)
    return attach_masks(data, table, folder, masks, "_mask") if masks.is_dir() else table
