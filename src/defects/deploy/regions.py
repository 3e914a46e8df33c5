"""From an anomaly map to boxes around regions, and to a picture with the map over it."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize
from defects.deploy.model import MapMeta

FRAME = (0, 255, 255)  # cyan: none of the heat map's colours


class Region(NamedTuple):
    """A connected part of a map, in pixels of the image, and the map's largest value in it."""

    kind: str
    x: int
    y: int
    width: int
    height: int
    peak: float


def find_regions(maps: np.ndarray, shape: tuple[int, int], meta: MapMeta) -> list[Region]:
    """Regions of maps [K, h, w] at their thresholds, in an image of `shape` (height, width); highest peak
    first."""
    found = [
        region
        for plane, kind, cut in zip(maps, meta.classes, meta.threshold, strict=True)
        for region in _of_plane(plane, kind, cut, shape)
    ]
    return sorted(found, key=lambda region: -region.peak)


def overlay(image: np.ndarray, maps: np.ndarray, meta: MapMeta, regions: list[Region]) -> np.ndarray:
    """uint8 [H, W, 3]: the image under its heat map, with frames around the regions.

    Colours mean the same in every picture, unlike those of a map stretched to its own extremes: blue is
    what normal images are like, yellow the threshold, red twice as far.
    """
    heat = resize(_heat(maps, meta), image.shape[:2])[..., None]
    levels = np.round(255 * heat).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    share = 0.15 + 0.4 * heat
    mixed = ((1 - share) * image + share * colours).round().astype(np.uint8)
    line = max(1, round(max(image.shape[:2]) / 300))
    for region in regions:
        corner = (region.x + region.width - 1, region.y + region.height - 1)
        cv2.rectangle(mixed, (region.x, region.y), corner, FRAME, line)
    return mixed


def _heat(maps: np.ndarray, meta: MapMeta) -> np.ndarray:
    """float32 [h, w] in [0, 1], of all classes the largest; 0.6 at the threshold, where JET is yellow."""
    normal, cut = (np.array(values, np.float32)[:, None, None] for values in (meta.normal, meta.threshold))
    relative = (maps - normal) / np.maximum(cut - normal, np.finfo(np.float32).tiny)
    return (0.6 * relative).clip(0, 1).max(0).astype(np.float32)


def _of_plane(plane: np.ndarray, kind: str, cut: float, shape: tuple[int, int]) -> list[Region]:
    _, part, facts, _ = cv2.connectedComponentsWithStats((plane >= cut).astype(np.uint8), connectivity=8)
    scale = shape[1] / plane.shape[1], shape[0] / plane.shape[0]
    found = []
    for number, (left, top, width, height, _) in enumerate(facts[1:].tolist(), start=1):
        x, right = (round(scale[0] * edge) for edge in (left, left + width))
        y, bottom = (round(scale[1] * edge) for edge in (top, top + height))
        peak = float(plane[part == number].max())
        found.append(Region(kind, x, y, max(1, right - x), max(1, bottom - y), peak))
    return found
