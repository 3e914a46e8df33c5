"""Regions and overlays from maps, and the labels that follow from them."""

from types import SimpleNamespace

import numpy as np
import pytest

from defects.deploy.model import MapMeta, MaskRule, find_note
from defects.deploy.prediction import Prediction, relabel
from defects.deploy.regions import draw_overlay, find_regions, mark_pixels


def test_regions_lie_where_the_map_is_high():
    maps = np.zeros((2, 10, 20), np.float32)
    maps[0, 2:4, 5:8], maps[1, 9, 0] = 0.7, 0.9
    meta = MapMeta(size=(10, 20), classes=["1", "2"], normal=[0, 0], threshold=[0.5, 0.5])
    found = find_regions(maps, (100, 400), meta)
    assert [region[:5] for region in found] == [("2", 0, 90, 20, 10), ("1", 100, 20, 60, 20)]
    assert found[1].peak == pytest.approx(0.7)
    assert find_regions(np.zeros_like(maps), (100, 400), meta) == []


def soft_spots():
    """Maps of probabilities [2, 10, 20]: a clear part and a faint one of class 1, a clear one of class 2."""
    maps = np.zeros((2, 10, 20), np.float32)
    maps[0, 2:6, 5:9], maps[0, 8:10, 0:2], maps[1, 0:5, 15:20] = 0.9, 0.4, 0.9
    return maps


def rules(**changes):
    plain = {"pixel": 0.5, "component": 0.0, "area": 0.0}
    masks = [MaskRule(**plain | changes), MaskRule(**plain)]
    thresholds = [rule.pixel for rule in masks]
    return MapMeta(size=(10, 20), classes=["1", "2"], normal=[0, 0], threshold=thresholds, rules=masks)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, "12"),
        ({"pixel": 0.3}, "112"),
        ({"pixel": 0.3, "component": 0.05}, "12"),
        ({"pixel": 0.3, "area": 0.05}, "112"),
        ({"area": 0.5}, "2"),
        ({"pixel": 0.95}, "2"),
    ],
)
def test_regions_follow_the_mask_rules(changes, kinds):
    found = find_regions(soft_spots(), (100, 200), rules(**changes))
    assert "".join(sorted(region.kind for region in found)) == kinds


def test_regions_by_rules_lie_on_the_grid_of_the_image():
    """Upsampled like a submission's mask: cells of the map alone would end at multiples of 10."""
    meta = rules(pixel=0.8)
    marked = mark_pixels(soft_spots(), (100, 200), meta)
    rows, columns = (np.flatnonzero(marked[0].any(axis)) for axis in (1, 0))
    (region,) = (region for region in find_regions(soft_spots(), (100, 200), meta) if region.kind == "1")
    assert (region.x, region.y) == (columns[0], rows[0]) and region.width == len(columns) < 40


@pytest.mark.parametrize(
    ("defect_scores", "labels", "kinds"),
    [
        ({"1": 60, "2": 60, "defect": 60}, ["1", "2", "defect"], "12"),
        ({"1": 10, "2": 60, "defect": 60}, ["2", "defect"], "2"),
        ({"1": 10, "2": 10, "defect": 60}, ["defect"], ""),
        ({"1": 10, "2": 10, "defect": 10}, [], ""),
    ],
)
def test_relabel_follows_thresholds_and_masks(defect_scores, labels, kinds):
    meta = SimpleNamespace(targets=["1", "2", "defect"], map=rules())
    marked = find_regions(soft_spots(), (100, 200), meta.map)
    found = Prediction("x.png", defect_score=defect_scores, candidate_regions=marked)
    found = relabel(found, dict.fromkeys(meta.targets, 50), meta)
    assert found.labels == labels and "".join(sorted(region.kind for region in found.regions)) == kinds


def test_relabel_leaves_out_a_class_whose_mask_is_empty():
    meta = SimpleNamespace(targets=["1", "2", "defect"], map=rules(area=0.5))
    marked = find_regions(soft_spots(), (100, 200), meta.map)
    found = Prediction("x.png", defect_score=dict.fromkeys(meta.targets, 90), candidate_regions=marked)
    found = relabel(found, dict.fromkeys(meta.targets, 50), meta)
    assert found.labels == ["2", "defect"]


def test_regions_of_exports_without_rules_exceed_the_threshold():
    old = SimpleNamespace(detector="segmenter", targets=["1", "2", "defect"], map=rules())
    assert find_note(old) == ""
    old.map = old.map.model_copy(update={"rules": None})
    assert "holds no mask rules" in find_note(old)
    assert [region.kind for region in find_regions(soft_spots(), (100, 200), old.map)] == ["1", "2"]


def test_overlay_of_a_normal_image_shows_the_image():
    """Colours are measured against the threshold, not against the map's own extremes."""
    meta = MapMeta(size=(8, 8), classes=["defect"], normal=[1.0], threshold=[3.0])
    image, noise = np.full((16, 16, 3), 200, np.uint8), np.random.default_rng(0).uniform(0.9, 1.1, (1, 8, 8))
    calm = draw_overlay(image, noise.astype(np.float32), meta, []).astype(int)
    assert np.ptp(calm[..., 0]) < 20
    noise[0, 4, 4] = 5
    assert np.ptp(draw_overlay(image, noise.astype(np.float32), meta, []).astype(int)[..., 0]) > 40
