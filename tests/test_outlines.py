"""Polygons around what a prediction marks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from defects.data.annotations.shapes import Shape, draw_shapes
from defects.deploy.model import MapMeta, MaskRule
from defects.deploy.outlines import outline_mask, outline_prediction
from defects.deploy.prediction import Prediction
from defects.deploy.regions import find_regions


def drawn(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return draw_shapes([Shape("", "polygon", points.astype(float)) for points in polygons], size).mask


@pytest.mark.parametrize("box", [(2, 3, 4, 2), (0, 0, 12, 9), (5, 5, 1, 1), (0, 8, 12, 1)])
def test_outline_mask_of_a_rectangle_has_its_corners(box):
    x, y, width, height = box
    mask = np.zeros((9, 12), bool)
    mask[y : y + height, x : x + width] = True
    (points,) = outline_mask(mask)
    assert sorted(points.tolist()) == sorted(
        [[x, y], [x + width, y], [x, y + height], [x + width, y + height]]
    )


def test_outline_mask_of_any_shape_is_near_it():
    rows, columns = np.indices((60, 80))
    mask = ((rows - 30) / 20) ** 2 + ((columns - 35) / 12) ** 2 < 1
    mask |= (abs(rows - columns) < 3) & (columns > 40)
    polygons = outline_mask(mask)
    marked = drawn(polygons, mask.shape)
    assert (marked & mask).sum() > 0.93 * (marked | mask).sum()
    assert sum(map(len, polygons)) < 60


def test_outline_mask_of_parts_that_touch_by_a_corner_is_one():
    mask = np.zeros((6, 6), bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    assert len(outline_mask(mask)) == 1
    mask[3:5, 3:5] = False
    mask[4:6, 4:6] = True
    assert len(outline_mask(mask)) == 2


def test_outline_mask_fills_holes():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[4, 4] = False
    (points,) = outline_mask(mask)
    assert drawn([points], mask.shape).sum() == 49


def prediction_of(maps: np.ndarray, shape, meta: MapMeta, probability: dict[str, float]) -> Prediction:
    labels = [name for name, value in probability.items() if value >= 0.5]
    regions = [region for region in find_regions(maps, shape, meta) if labels]
    return Prediction(
        Path("a.png"), probability=probability, labels=labels, regions=regions, maps=maps, shape=shape
    )


PLAIN = MapMeta(size=(5, 5), classes=["defect"], normal=[0], threshold=[0.5])


def test_outline_prediction_of_cells_lies_around_them():
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 1:3, 1:4] = 1
    prediction = prediction_of(maps, (100, 200), PLAIN, {"defect": 0.9})
    (outline,) = outline_prediction(prediction, SimpleNamespace(map=PLAIN))
    assert (outline.kind, outline.probability) == ("defect", 0.9)
    assert outline.points.min(axis=0).tolist() == pytest.approx([40, 20], abs=3)
    assert outline.points.max(axis=0).tolist() == pytest.approx([160, 60], abs=3)


def test_outline_prediction_keeps_a_part_that_smoothing_would_lose():
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 2, 2] = 0.5
    prediction = prediction_of(maps, (10, 10), PLAIN, {"defect": 0.9})
    (outline,) = outline_prediction(prediction, SimpleNamespace(map=PLAIN))
    assert drawn([outline.points], (10, 10)).sum() == 4


def test_outline_prediction_of_classes_by_mask_rules():
    rule = MaskRule(pixel=0.5, component=0.0, area=0.0)
    meta = MapMeta(size=(5, 5), classes=["1", "2"], normal=[0, 0], threshold=[0.5, 0.5], rules=[rule, rule])
    maps = np.zeros((2, 5, 5), np.float32)
    maps[0, 1, 1] = maps[1, 3, 3] = 1
    prediction = prediction_of(maps, (50, 50), meta, {"1": 0.9, "2": 0.8, "defect": 0.9})
    outlines = outline_prediction(prediction, SimpleNamespace(map=meta))
    assert [(outline.kind, outline.probability) for outline in outlines] == [("1", 0.9), ("2", 0.8)]


def test_outline_prediction_of_a_defect_without_a_part_is_the_whole_image():
    prediction = prediction_of(np.zeros((1, 5, 5), np.float32), (10, 20), PLAIN, {"defect": 0.9})
    (outline,) = outline_prediction(prediction, SimpleNamespace(map=PLAIN))
    assert drawn([outline.points], (10, 20)).all()


def test_outline_prediction_of_a_normal_image_is_empty():
    maps = np.ones((1, 5, 5), np.float32)
    prediction = prediction_of(maps, (10, 20), PLAIN, {"defect": 0.1})
    assert outline_prediction(prediction, SimpleNamespace(map=PLAIN)) == []
