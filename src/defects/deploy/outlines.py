"""What a prediction marks, as polygons that people can correct in an annotation tool."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize
from defects.data.roi import scale_inside
from defects.deploy.model import MapMeta, Meta
from defects.deploy.prediction import Prediction
from defects.deploy.regions import mark_pixels

TOLERANCE_PIXELS = 0.75  # by which a polygon may differ from the marked pixels, at least
TOLERANCE_SHARE = 0.01  # of the longer side of the polygon


class Outline(NamedTuple):
    """One connected part: `points` int [N, 2], x and y of the corners of pixels; holes are filled."""

    kind: str
    points: np.ndarray
    probability: float


def outline_prediction(prediction: Prediction, meta: Meta) -> list[Outline]:
    """The parts of the kinds that are present, by kind; all that is judged if a defect has no part."""
    judged = None if prediction.inside is None else scale_inside(prediction.inside, prediction.shape)
    outlines = []
    kinds = {region.kind for region in prediction.regions}
    masks = _mark_kinds(prediction, meta.map, judged) if kinds else {}
    for kind, mask in masks.items():
        if kind in kinds:
            target = kind if kind in prediction.probability else "defect"
            probability = prediction.probability[target]
            outlines += [Outline(kind, points, probability) for points in outline_mask(mask)]
    if not outlines and prediction.labels:
        kind = prediction.labels[0]
        everything = np.ones(prediction.shape, bool) if judged is None else judged
        for points in outline_mask(everything):
            outlines.append(Outline(kind, points, prediction.probability[kind]))
    return outlines


def outline_mask(mask: np.ndarray) -> list[np.ndarray]:
    """A polygon, int [N, 2], around each 8-connected part of bool [H, W], along the corners of its pixels."""
    # OpenCV's contours go through the centres of pixels: of quarter pixels these tell whole ones' corners.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = (contour + 1) // 2
        longer_side = np.ptp(corners, axis=0).max()
        tolerance = max(TOLERANCE_PIXELS, TOLERANCE_SHARE * longer_side)
        simple = cv2.approxPolyDP(corners.astype(np.int32), tolerance, closed=True)
        polygons.append(simple[:, 0] if len(simple) > 2 else _drop_repeated(corners[:, 0]))
    return polygons


def _drop_repeated(points: np.ndarray) -> np.ndarray:
    """Without points that are equal to the one before."""
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]


def _mark_kinds(prediction: Prediction, meta: MapMeta, judged: np.ndarray | None) -> dict[str, np.ndarray]:
    """bool [H, W] by kind, on the pixels of the image."""
    if meta.rules is not None:
        masks = mark_pixels(prediction.maps, prediction.shape, meta, judged)
    else:
        masks = [
            _mark_smoothly(plane, threshold, prediction.shape)
            for plane, threshold in zip(prediction.maps, meta.threshold, strict=True)
        ]
        if judged is not None:
            masks = [mask & judged for mask in masks]
    return dict(zip(meta.classes, masks, strict=True))


def _mark_smoothly(plane: np.ndarray, threshold: float, shape: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: what reaches the threshold between the cells of a map [h, w], or cells if nothing does."""
    height, width = shape
    mask = resize(plane.astype(np.float32), shape) >= threshold
    cells = (plane >= threshold).astype(np.uint8)
    enlarged = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    count, parts = cv2.connectedComponents(enlarged, connectivity=8)
    for number in range(1, count):
        part = parts == number
        if not mask[part].any():
            mask |= part
    return mask
