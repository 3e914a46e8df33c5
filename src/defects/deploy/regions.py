"""From an anomaly map to boxes around regions, and to a picture with the map over it."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize
from defects.deploy.model import MapMeta
from defects.scoring.mask_rules import Rule, mask_if_present

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
    """Regions of maps [K, h, w] in an image of `shape` (height, width), highest peak first.

    By the mask rules where the model has them, on the grid of the image as in a submission; else cells of the
    map at their threshold. Whether a class is there at all is not asked.
    """
    if meta.rules is None:
        marks = maps >= np.array(meta.threshold, np.float32)[:, None, None]
        planes = maps
    else:
        marks = mark_pixels(maps, shape, meta)
        planes = [resize(plane, shape) for plane in maps]
    found = []
    for plane, marked, kind in zip(planes, marks, meta.classes, strict=True):
        if marked.any():
            found += _of_plane(plane, marked, kind, shape)
    return sorted(found, key=lambda region: -region.peak)


def mark_pixels(maps: np.ndarray, shape: tuple[int, int], meta: MapMeta) -> np.ndarray:
    """bool [K, H, W]: the masks of all classes by the model's rules, each taken to be there.

    Maps are rounded to bytes first, as those that submissions are made from.
    """
    kept = (np.round(255 * maps) / np.float32(255)).astype(np.float16)
    rules = [Rule(pixel=rule.pixel, component=rule.component, area=rule.area) for rule in meta.rules]
    masks = [mask_if_present(plane, shape, rule) for plane, rule in zip(kept, rules, strict=True)]
    return np.stack(masks)


def scale_region(region: Region, shape: tuple[int, int], size: tuple[int, int]) -> Region:
    """The region of an image of `shape` in a picture of it that has `size`, both (height, width)."""
    down, across = size[0] / shape[0], size[1] / shape[1]
    x, right = (round(across * edge) for edge in (region.x, region.x + region.width))
    y, bottom = (round(down * edge) for edge in (region.y, region.y + region.height))
    return region._replace(x=x, y=y, width=max(1, right - x), height=max(1, bottom - y))


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


def _of_plane(plane: np.ndarray, marked: np.ndarray, kind: str, shape: tuple[int, int]) -> list[Region]:
    """Connected parts of `marked` [h, w] and the highest value of `plane` [h, w] in each."""
    _, part, facts, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    found = []
    for number, (left, top, width, height, _) in enumerate(facts[1:].tolist(), start=1):
        inside = (slice(top, top + height), slice(left, left + width))
        peak = float(plane[inside][part[inside] == number].max())
        found.append(scale_region(Region(kind, left, top, width, height, peak), marked.shape, shape))
    return found
