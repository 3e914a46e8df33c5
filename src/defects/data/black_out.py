"""Black-out: training images whose marked defects are covered up count as normal.

As the first place of the Severstal competition trained its classifiers: they learn that the defect itself,
and not the strip around it, makes the label. A cover must not betray the class: normal images get covers of
the same shapes as often, and so do defective images, beside the defects that they keep.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from defects.data.images import resize_mask
from defects.data.labels import is_marked, read_masks
from defects.messages import UserError
from defects.numerics import derive_seed

BLACK_OUT_STREAM = 1  # of its random numbers, which are none of the augmentation's
RIM = np.ones((3, 3), np.uint8)  # a JPEG decoded at a fraction of its size spreads a defect by a pixel


class BlackOut:
    """What is covered in each of `rows` (all of images.csv), with a probability, in one epoch.

    Raises UserError if no row says where its defects are. Those whose defects are not marked are left alone.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        root: Path,
        size: tuple[int, int],
        probability: float,
        seed: int,
    ):
        self.rows = rows.to_dict("records")
        self.root = root
        self.size = size
        self.probability = probability
        self.seed = seed
        self.marked = [row for row in self.rows if is_marked(row)]
        if not self.marked:
            raise UserError(
                f"train.black_out={probability} covers marked defects, but no image that is learnt from has "
                "any: set it to 0"
            )

    def hides(self, epoch: int, row: int) -> bool:
        """Whether every defect of this row is covered, so that its labels become 0."""
        return is_marked(self.rows[row]) and self._random(epoch, row).random() < self.probability

    def cover(self, epoch: int, row: int) -> np.ndarray | None:
        """bool [H, W], True where the image is covered; None where nothing is."""
        values = self.rows[row]
        random = self._random(epoch, row)
        hides_own, covers_shape = random.random(2) < self.probability
        if is_marked(values) and hides_own:
            return self._read_shape(values)
        if not covers_shape or not (is_marked(values) or values["label"] == 0):
            return None
        shape = self._read_shape(self.marked[random.integers(len(self.marked))])
        return shape & ~self._read_shape(values) if is_marked(values) else shape

    def _read_shape(self, row: dict[str, Any]) -> np.ndarray:
        """bool [H, W]: all marked defects of a row at the size of training, and their rim."""
        mask = resize_mask(read_masks(row, self.root, [])[..., 0], self.size)
        return cv2.dilate(mask.astype(np.uint8), RIM) > 0

    def _random(self, epoch: int, row: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, epoch, row, BLACK_OUT_STREAM))
