"""What detectors leave out of their maps and scores: cells outside the region of interest."""

import pytest
import torch

from defects.models.inside import (
    LOWEST,
    average_inside,
    cells_inside,
    lower_empty,
    lower_outside,
    mean_of_largest,
)

LEFT = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
LEFT[..., :3] = True  # the second of four cells of two pixels has one pixel inside


def test_cells_inside_any_pixel_counts():
    assert cells_inside(LEFT, [2, 4])[0, 0].tolist() == [[True, True, False, False]] * 2
    assert cells_inside(None, [2, 4]) is None


@pytest.mark.parametrize(
    ("count", "is_share", "expected"), [(2, False, 3.5), (8, False, 2.5), (4, True, 3.5), (1, True, 4)]
)
def test_mean_of_largest_is_of_those_inside(count, is_share, expected):
    values = torch.tensor([[1.0, 2, 3, 4, 50, 60, 70, 80]])
    inside = torch.tensor([[True] * 4 + [False] * 4])
    assert mean_of_largest(values, count, inside, is_share).item() == expected


def test_mean_of_largest_nothing_inside_is_the_lowest():
    values = torch.tensor([[1.0, 2], [3, 4]])
    inside = torch.tensor([[False, False], [True, True]])
    assert mean_of_largest(values, 2, inside).tolist() == [LOWEST, 3.5]


def test_average_inside_does_not_mix_in_what_lies_outside():
    maps = torch.where(LEFT, 5.0, 100.0)
    pooled = average_inside(maps, LEFT, lambda values: torch.nn.functional.avg_pool2d(values, 2))
    torch.testing.assert_close(pooled[0, 0, :, :2], torch.full((2, 2), 5.0))


def test_lower_outside_is_the_smallest_inside():
    maps = torch.arange(32.0).reshape(1, 1, 4, 8)
    lowered = lower_outside(maps, LEFT)
    assert lowered[LEFT].tolist() == maps[LEFT].tolist() and not lowered[~LEFT].any()
    nowhere = torch.zeros_like(LEFT)
    assert not lower_outside(maps, nowhere).any()


def test_lower_empty_a_window_without_region_never_wins():
    window = torch.cat([torch.rand(2, 3, 4, 8), LEFT.float().expand(2, -1, -1, -1)], 1)
    window[1, 3] = 0
    assert lower_empty(torch.ones(2, 1), window).tolist() == [[1.0], [LOWEST]]
