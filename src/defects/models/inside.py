"""Regions of interest within detectors: the fourth channel of images is 1 where they are judged, else 0.

Detectors leave all other cells of their maps out of what they learn, and out of scores. `inside` is None
where images have three channels: then all cells count.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

# Of a logit or distance that must never be the largest; finite, since infinite ones make NaN of gradients.
LOWEST = -1e4


def split_inside(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images [B, 3 or 4, H, W] -> colours [B, 3, H, W], and bool [B, 1, H, W], True where they are judged."""
    if images.shape[1] == 3:
        return images, None
    return images[:, :3], images[:, 3:] > 0.5


def cells_inside(inside: torch.Tensor | None, grid: torch.Size | list[int]) -> torch.Tensor | None:
    """bool [B, 1, H, W] -> [B, 1, h, w]: cells with any pixel inside."""
    if inside is None or inside.shape[2:] == torch.Size(grid):
        return inside
    return functional.interpolate(inside.float(), tuple(grid), mode="area") > 0


def clear_outside(maps: torch.Tensor, inside: torch.Tensor | None, value: float) -> torch.Tensor:
    """Maps [B, K, h, w] with `value` in all cells but those of `inside` [B, 1, h, w]."""
    return maps if inside is None else maps.masked_fill(~inside, value)


def lower_outside(maps: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Maps [B, K, h, w] with the smallest value inside in all other cells; 0 where no cell is inside."""
    if inside is None:
        return maps
    smallest = maps.masked_fill(~inside, torch.inf).amin((2, 3), keepdim=True)
    smallest = torch.where(smallest.isinf(), torch.zeros_like(smallest), smallest)
    return torch.where(inside, maps, smallest)


def select_inside(maps: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """The vectors [N, C] of the cells of maps [C, h, w] with `inside` bool [1, h, w], or of all."""
    vectors = maps.flatten(1).T
    return vectors if inside is None else vectors[inside.flatten()]


def average_inside(
    maps: torch.Tensor, inside: torch.Tensor | None, average: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """`average` of maps [B, K, h, w], a smoothing or interpolation, of the cells inside alone."""
    if inside is None:
        return average(maps)
    weights = inside.to(maps)
    return average(maps * weights) / average(weights).clamp(min=1e-6)


def mean_inside(values: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Mean of all values [B, C, h, w], or of those inside; 0 if there are none."""
    if inside is None:
        return values.mean()
    weights = inside.to(values).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def mean_of_largest(
    values: torch.Tensor, count: int, inside: torch.Tensor | None = None, is_share: bool = False
) -> torch.Tensor:
    """Mean of the `count` largest of values [..., P], or of those with `inside` bool [..., P] (broadcast).

    With `is_share` as large a share of those inside as `count` is of all. LOWEST where none is inside.
    """
    count = min(count, values.shape[-1])
    if inside is None:
        return values.topk(count, -1).values.mean(-1)
    largest = values.masked_fill(~inside, LOWEST).topk(count, -1).values
    total = inside.sum(-1, keepdim=True)
    counts = (total * (count / values.shape[-1])).round() if is_share else total
    is_counted = torch.arange(count, device=values.device) < counts.clamp(min=1, max=count)
    return (largest * is_counted).sum(-1) / is_counted.sum(-1)


def lower_empty(score: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Scores [B, C] of images, or windows of them; LOWEST where nothing of them is inside."""
    _, inside = split_inside(images)
    if inside is None:
        return score
    return torch.where(inside.flatten(1).any(1, keepdim=True), score, LOWEST)
