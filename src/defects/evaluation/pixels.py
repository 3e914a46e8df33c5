"""Anomaly maps: read from their archive, and compared with masks (pixel AUROC, AUPRO)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from defects.data.images import resize, resize_mask
from defects.data.labels import has_mask, read_masks
from defects.data.roi import Roi
from defects.messages import UserError

FPR_LIMIT = 0.3  # AUPRO looks no further

LEVELS = 1 << 16  # distinct half-precision numbers

SIGN = np.uint16(0x8000)

NOT_JUDGED = -1  # in a mask: outside the region of interest


def pixel_metrics(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | None]:
    """`pixel_auroc` and `aupro` of pairs (map [h, w], mask [H, W]) of one model; None without defects.

    A mask is 1 where a defect is, 0 elsewhere and NOT_JUDGED outside a region of interest, which is left out.

    A map is brought bilinearly to the size of its mask, which is the image's own, and compared in half
    precision, in which maps are kept: memory does not grow with the number of pixels. Maps are kept at
    `infer.map_size`, so the figures of defects finer than that are lower than those of whole maps.

    AUPRO (Bergmann et al. 2020, "Uninformed Students", section 4): over all thresholds, the share of each
    defect region that is detected, averaged over the regions of all images, against the share of normal
    pixels predicted defective; its area up to FPR_LIMIT, divided by FPR_LIMIT. Regions are 8-connected. The
    curve is exact: its last piece ends at the limit by interpolation, where popular code samples some hundred
    thresholds or leaves that piece out. Chance is 0.5 for pixel AUROC and 0.15 for AUPRO.
    """
    normal, defect, overlap = np.zeros((3, LEVELS))
    for scores, mask in pairs:
        level = _levels(resize(scores.astype(np.float32), mask.shape))
        normal += np.bincount(level[mask == 0], minlength=LEVELS)
        is_defect = mask == 1
        if is_defect.any():
            defect += np.bincount(level[is_defect], minlength=LEVELS)
            overlap += np.bincount(level[is_defect], weights=_region_shares(is_defect), minlength=LEVELS)
    return {"pixel_auroc": _area(normal, defect, 1.0), "aupro": _area(normal, overlap, FPR_LIMIT)}


def masked_maps(
    rows: pd.DataFrame, maps: Mapping[str, np.ndarray], root: Path, roi: Roi | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(map, mask of all defects) of `rows` of images.csv; defects of unknown mask left out.

    With `roi` a mask is NOT_JUDGED outside it.
    """
    for row in rows[rows["image_id"].isin(set(maps))].to_dict("records"):
        if not has_mask(row):
            continue
        mask = read_masks(row, root, [])
        size = (row["height"], row["width"])
        is_defect = np.zeros(size, bool) if mask is None else mask[..., 0] > 0
        if roi is not None:
            is_defect = np.where(roi.read(row["path"], size), is_defect.astype(np.int8), NOT_JUDGED)
        yield maps[row["image_id"]], is_defect


def judged_cells(planes: np.ndarray, roi: Roi | None, path: str) -> np.ndarray:
    """Of maps [K, h, w] of the image at `path` the cells with any pixel in the region of interest, [K, N]."""
    if roi is None:
        return planes
    return planes[:, resize_mask(roi.read(path, roi.image_size), planes.shape[1:])]


class Maps(Mapping[str, np.ndarray]):
    """The maps [h, w] of an .npz by image_id, read one at a time; empty if there is no file.

    Where classes have maps of their own, the largest of them; `of_classes` has them all.

    Raises UserError for an unreadable file and for a map that is not finite.
    """

    def __init__(self, path: Path):
        self.path = path
        self.archive = {}
        if path.exists():
            try:
                self.archive = np.load(path)
                if not isinstance(self.archive, np.lib.npyio.NpzFile):
                    raise ValueError("it is a single array")
            except Exception as error:  # the zip's and numpy's
                reason = " ".join(str(error).split())
                raise UserError(f"{path} is no archive of maps ({reason}): make it again") from None

    @property
    def segment(self) -> bool:
        """Whether there are maps, and they are probabilities of pixels: those are kept as bytes."""
        return any(self._array(image_id).dtype == np.uint8 for image_id in list(self)[:1])

    def __getitem__(self, image_id: str) -> np.ndarray:
        return self.of_classes(image_id).max(axis=0)

    def of_classes(self, image_id: str) -> np.ndarray:
        """float16 [K, h, w]; probabilities, kept as bytes, come back as such."""
        values = self._array(image_id)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: map {image_id} is not finite: train with a lower train.lr")
        if values.dtype == np.uint8:
            values = (values / np.float32(255)).astype(np.float16)
        return values.reshape(-1, *values.shape[-2:])

    def _array(self, image_id: str) -> np.ndarray:
        try:
            with np.errstate(all="ignore"):  # of a size that is nonsense
                values = self.archive[image_id]
            if values.ndim not in (2, 3) or values.dtype not in (np.uint8, np.float16) or not values.size:
                raise ValueError(f"{values.dtype} of shape {values.shape}")
        except Exception as error:  # the zip's, numpy's, and those of the expression that an array's head is
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: map {image_id} is broken ({reason}): make it again") from None
        return values

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.archive

    def __iter__(self) -> Iterator[str]:
        return iter(self.archive)

    def __len__(self) -> int:
        return len(self.archive)


class CellCounts:
    """How often each half-precision value occurs in maps: exact quantiles without keeping the maps."""

    def __init__(self):
        self.counts = np.zeros(LEVELS, np.int64)  # by the bits of the value

    def add(self, plane: np.ndarray) -> None:
        """Take in a map, float16 [h, w], or some of its cells."""
        bits = np.ascontiguousarray(plane, np.float16).view(np.uint16)
        self.counts += np.bincount(bits.ravel(), minlength=LEVELS)

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of all cells does not exceed."""
        present = np.flatnonzero(self.counts)
        values = present.astype(np.uint16).view(np.float16).astype(float)
        order = np.argsort(values)
        up_to = self.counts[present][order].cumsum()
        return float(values[order][np.searchsorted(up_to, share * up_to[-1])])


def _levels(scores: np.ndarray) -> np.ndarray:
    """Whole numbers below LEVELS in the order of the scores, equal for scores equal in half precision."""
    bits = (scores.astype(np.float16) + np.float16(0)).view(np.uint16)  # + 0: there are two zeros
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _region_shares(mask: np.ndarray) -> np.ndarray:
    """For each pixel of a mask, in row order: the share that it is of its 8-connected region."""
    region = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1][mask]
    return 1 / np.bincount(region)[region]


def _area(normal: np.ndarray, positive: np.ndarray, limit: float) -> float | None:
    """Area up to `limit`, over `limit`, under the curve of shares that reach a level, highest level first."""
    if not (normal.any() and positive.any()):
        return None
    x, y = (np.append(0, weights[::-1].cumsum() / weights.sum()) for weights in (normal, positive))
    inside = x <= limit
    y_at_limit = np.interp(limit, x, y)
    x = np.append(x[inside], limit)
    y = np.append(y[inside], y_at_limit)
    return float(trapezoid(y, x) / limit)
