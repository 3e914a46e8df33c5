"""Plain folders: one of normal images; optionally abnormal ones, their masks, unlabelled test images."""

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import list_images
from defects.data.sources.listing import Listing, attach_masks, rows


def list_data(data: DataConfig) -> Listing:
    """Ids are `<folder's name>/<path below it>`; masks carry their image's name, with or without `_mask`."""
    root, names = resolve(data.root), data.folders
    parts = [_folder(data, names.normal, "train", 0)]
    if names.abnormal:
        abnormal = _folder(data, names.abnormal, "train", 1)
        if names.masks:
            abnormal = attach_masks(data, abnormal, root / names.abnormal, root / names.masks, "_mask")
        parts.append(abnormal)
    if names.test:
        parts.append(_folder(data, names.test, "test", None))
    return Listing(pd.concat(parts, ignore_index=True))


def _folder(data: DataConfig, name: str, split: str, label: int | None) -> pd.DataFrame:
    folder = resolve(data.root) / name
    return rows(data, list_images(folder), folder.parent, split, label)
