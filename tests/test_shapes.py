"""What polygons, boxes and ellipses mark."""

import numpy as np
import pytest
from annotation_sets import FIRST, HEIGHT, SECOND, WIDTH, corners, rectangle

from defects.data.annotations.shapes import (
    Shape,
    as_points,
    box_shape,
    draw_shapes,
    ellipse_points,
    rotate_points,
)
from defects.data.rle import encode

SIZE = (HEIGHT, WIDTH)


def polygon(*points: tuple[float, float]) -> Shape:
    return Shape("scratch", "polygon", np.array(points, float))


@pytest.mark.parametrize("box", [FIRST, SECOND, (0, 0, WIDTH, HEIGHT), (11, 8, 1, 1)])
def test_draw_shapes_a_polygon_around_pixels_marks_these_pixels(box):
    assert np.array_equal(draw_shapes([polygon(*corners(*box))], SIZE).mask, rectangle(box))
    assert np.array_equal(draw_shapes([polygon(*corners(*box)[::-1])], SIZE).mask, rectangle(box))


def test_draw_shapes_counts_pixels_whose_centres_lie_inside():
    marked = draw_shapes([polygon(*corners(2.4, 3.6, 3.2, 1.8))], SIZE).mask
    assert np.array_equal(marked, rectangle((2, 4, 4, 1)))


def test_draw_shapes_unites_shapes_of_all_kinds():
    shapes = [polygon(*corners(*FIRST)), Shape("", "mask", runs=encode(rectangle(SECOND)))]
    assert np.array_equal(draw_shapes(shapes, SIZE).mask, rectangle(FIRST, SECOND))


def test_draw_shapes_in_parts_of_the_image():
    shape = box_shape("", 2 / WIDTH, 3 / HEIGHT, 6 / WIDTH, 5 / HEIGHT)
    assert np.array_equal(draw_shapes([shape], SIZE, is_relative=True).mask, rectangle(FIRST))


def test_draw_shapes_leaves_a_hole_that_a_bridge_leads_to():
    outer = corners(1, 1, 8, 6)
    hole = corners(3, 3, 2, 2)
    keyhole = polygon(*outer, outer[0], hole[0], *hole[:0:-1], hole[0])
    drawing = draw_shapes([keyhole], SIZE)
    assert np.array_equal(drawing.mask, rectangle((1, 1, 8, 6)) & ~rectangle((3, 3, 2, 2)))
    assert not drawing.faults


@pytest.mark.parametrize(
    ("points", "fault", "pixels"),
    [
        ([(1, 1), (5, 5)], "too few points", 0),
        ([(1, 1), (5, 5), (1, 1)], "too few points", 0),
        (corners(20, 2, 4, 4), "outside", 0),
        (corners(-9, 2, 4, 4), "outside", 0),
        (corners(-3, 2, 5, 4), "clipped", 8),
        ([(1, 1), (9, 7), (9, 1), (1, 7)], "crossing", None),
    ],
)
def test_draw_shapes_says_what_is_wrong(points, fault, pixels):
    mask, faults = draw_shapes([polygon(*points)], SIZE)
    assert faults == {fault}
    assert mask.any() if pixels is None else mask.sum() == pixels


def test_draw_shapes_does_not_blame_a_border_that_tools_overstep():
    assert not draw_shapes([polygon(*corners(-0.5, -1, WIDTH + 1, HEIGHT + 1.5))], SIZE).faults


def test_draw_shapes_marks_a_pixel_of_what_is_thinner_than_one():
    assert draw_shapes([polygon((2.1, 3.1), (2.3, 3.1), (2.3, 3.3))], SIZE).mask.sum() == 1


def test_draw_shapes_refuses_runs_beyond_the_image():
    with pytest.raises(ValueError, match="past the last of 108 pixels"):
        draw_shapes([Shape("", "mask", runs="100 20")], SIZE)


def test_ellipse_points_enclose_its_area():
    points = ellipse_points((50, 40), (30, 10), degrees=30)
    assert draw_shapes([polygon(*points)], (80, 100)).mask.sum() == pytest.approx(np.pi * 300, rel=0.01)


def test_rotate_points_turns_clockwise_as_seen():
    assert rotate_points(np.array([[1.0, 0.0]]), 90) == pytest.approx(np.array([[0.0, 1.0]]))


@pytest.mark.parametrize(
    "values", [[1, 2, 3], ["a", 1], [[1, 2], [3]], [1, float("nan")], [None, 2], [10**400, 1], [1e300, 1]]
)
def test_as_points_refuses_what_are_no_points(values):
    with pytest.raises(ValueError, match="coordinates"):
        as_points(values)
