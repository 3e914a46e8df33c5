"""From an anomaly map to boxes around regions, and to a picture with the map over it."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize
from defects.data.roi import clear_plane, scale_inside
from defects.deploy.model import MapMeta
from defects.evaluation.display_scales import LIMIT_COLOUR, compute_heat, darken_outside, paint_heat
from defects.evaluation.mask_rules import Rule, mask_if_present


class Region(NamedTuple):
    """A connected part of a map, in pixels of the image, and the map's largest value in it."""

    kind: str
    x: int
    y: int
    width: int
    height: int
    peak: float


def find_regions(
    maps: np.ndarray, shape: tuple[int, int], meta: MapMeta, inside: np.ndarray | None = None
) -> list[Region]:
    """Regions of maps [K, h, w] in an image of `shape` (height, width), highest peak first.

    By the mask rules where the model has them, on the grid of the image as in a submission; else cells of the
    map at their threshold. Whether the class is present is not asked. With `inside` bool [h, w], an image's
    region of interest at any size, nothing reaches out of it.
    """
    judged = None if inside is None else scale_inside(inside, shape)
    if meta.rules is None:
        masks = maps >= np.array(meta.threshold, np.float32)[:, None, None]
        planes = maps
        if judged is not None:
            masks = [enlarge_cells(mask, shape) & judged for mask in masks]
            planes = [enlarge_cells(plane, shape) for plane in maps]
    else:
        masks = mark_pixels(maps, shape, meta, judged)
        planes = [resize(plane, shape) for plane in maps]
    regions = []
    for plane, mask, kind in zip(planes, masks, meta.classes, strict=True):
        _, parts, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        for number, (left, top, width, height, _) in enumerate(boxes[1:].tolist(), start=1):
            inside = (slice(top, top + height), slice(left, left + width))
            peak = float(plane[inside][parts[inside] == number].max())
            region = Region(kind, left, top, width, height, peak)
            regions.append(scale_region(region, mask.shape, shape))
    return sorted(regions, key=lambda region: -region.peak)


def enlarge_cells(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map or mask [h, w] with its cells as rectangles of pixels, [H, W]."""
    height, width = shape
    pixels = plane.astype(np.uint8) if plane.dtype == bool else plane
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST).astype(plane.dtype)


def mark_pixels(
    maps: np.ndarray, shape: tuple[int, int], meta: MapMeta, inside: np.ndarray | None = None
) -> np.ndarray:
    """bool [K, H, W]: the masks of all classes by the model's rules, all taken to be present.

    With `inside` bool [H, W] nothing is marked elsewhere. Maps are rounded to bytes first, as those that
    submissions are made from.
    """
    rounded = (np.round(255 * maps) / np.float32(255)).astype(np.float16)
    rules = [Rule(pixel=rule.pixel, component=rule.component, area=rule.area) for rule in meta.rules]
    masks = []
    for plane, rule in zip(rounded, rules, strict=True):
        masks.append(mask_if_present(clear_plane(plane, inside), shape, rule))
    return np.stack(masks)


def scale_region(region: Region, shape: tuple[int, int], size: tuple[int, int]) -> Region:
    """The region of an image of `shape` in a picture of it that has `size`, both (height, width)."""
    down = size[0] / shape[0]
    across = size[1] / shape[1]
    x = round(across * region.x)
    y = round(down * region.y)
    right = round(across * (region.x + region.width))
    bottom = round(down * (region.y + region.height))
    return region._replace(x=x, y=y, width=max(1, right - x), height=max(1, bottom - y))


def draw_overlay(
    image: np.ndarray,
    maps: np.ndarray,
    meta: MapMeta,
    regions: list[Region],
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 [H, W, 3]: the image under its heat map (see display_scales), with frames around the regions.

    Dark outside the region of interest, `inside` bool [h, w] of any size.
    """
    heats = [
        compute_heat(plane, normal, threshold)
        for plane, normal, threshold in zip(maps, meta.normal, meta.threshold, strict=True)
    ]
    heat = resize(np.max(heats, axis=0), image.shape[:2])
    if inside is not None:
        inside = scale_inside(inside, image.shape[:2])
        heat = heat * inside
    picture = darken_outside(paint_heat(image, heat), inside)
    line = max(1, round(max(image.shape[:2]) / 300))
    for region in regions:
        corner = (region.x + region.width - 1, region.y + region.height - 1)
        cv2.rectangle(picture, (region.x, region.y), corner, LIMIT_COLOUR, line)
    return picture
