"""From an anomaly map to boxes around regions, and to a picture with the map over it."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize
from defects.deploy.model import MapMeta
from defects.evaluation.display_scales import LIMIT_COLOUR, compute_heat, paint_heat
from defects.evaluation.mask_rules import Rule, mask_if_present


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
    """uint8 [H, W, 3]: the image under its heat map (see display_scales), with frames around the regions."""
    heats = [
        compute_heat(plane, normal, threshold)
        for plane, normal, threshold in zip(maps, meta.normal, meta.threshold, strict=True)
    ]
    picture = paint_heat(image, resize(np.max(heats, axis=0), image.shape[:2]))
    line = max(1, round(max(image.shape[:2]) / 300))
    for region in regions:
        corner = (region.x + region.width - 1, region.y + region.height - 1)
        cv2.rectangle(picture, (region.x, region.y), corner, LIMIT_COLOUR, line)
    return picture


def _of_plane(plane: np.ndarray, marked: np.ndarray, kind: str, shape: tuple[int, int]) -> list[Region]:
    """Connected parts of `marked` [h, w] and the highest value of `plane` [h, w] in each."""
    _, part, facts, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    found = []
    for number, (left, top, width, height, _) in enumerate(facts[1:].tolist(), start=1):
        inside = (slice(top, top + height), slice(left, left + width))
        peak = float(plane[inside][part[inside] == number].max())
        found.append(scale_region(Region(kind, left, top, width, height, peak), marked.shape, shape))
    return found
