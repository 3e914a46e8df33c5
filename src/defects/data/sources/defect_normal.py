"""The defect/normal competition: train/{defect_images,defect_masks,normal_images}, test/images."""

import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.images import list_images
from defects.data.sources.listing import Listing, attach_masks, rows


def list_data(data: DataConfig) -> Listing:
    """Training ids are `defect_images/name` and `normal_images/name`; test ids are file names.

    Defect masks and test images may be absent.
    """
    train, test = resolve(data.root) / "train", resolve(data.root) / "test" / "images"
    normal = rows(data, list_images(train / "normal_images"), train, "train", 0)
    defect = rows(data, list_images(train / "defect_images"), train, "train", 1)
    if (train / "defect_masks").is_dir():
        defect = attach_masks(data, defect, train / "defect_images", train / "defect_masks")
    parts = [normal, defect]
    if test.is_dir():
        parts.append(rows(data, list_images(test), test, "test", None))
    return Listing(pd.concat(parts, ignore_index=True))
