"""Pixel AUROC and AUPRO on cases worked by hand, against brute force, and where maps meet masks."""

import numpy as np
import pandas as pd
import pytest
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label as regions_of
from sklearn.metrics import roc_auc_score

from defects.evaluation.pixels import Maps, masked_maps, pixel_metrics
from defects.files import array_archive
from defects.messages import UserError


def metrics(scores, mask):
    found = pixel_metrics([(np.array(scores, np.float32), np.array(mask, bool))])
    return found["pixel_auroc"], found["aupro"]


def test_pixels_two_regions_of_different_sizes_count_alike():
    # A region of one pixel, found at 1; one of four, half of it found at 0.9 and the rest at 0.5. Of ten
    # normal pixels one has 0.8. The curve: (0, 1/2), (0, 3/4), (0.1, 3/4), (0.1, 1), (1, 1).
    scores = [[1, 0, 0.9, 0.9, 0.5], [0, 0.8, 0, 0, 0.5], [0, 0, 0, 0, 0]]
    mask = [[1, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    auroc, aupro = metrics(scores, mask)
    assert aupro == pytest.approx((0.1 * 0.75 + 0.2 * 1) / 0.3)
    assert auroc == pytest.approx((3 * 10 + 2 * 9) / (5 * 10))


def test_pixels_the_curve_is_cut_at_the_limit_by_interpolation():
    # One region found at once, the other with all normal pixels: a line from (0, 1/2) to (1, 1), 0.65 at 0.3.
    assert metrics([[1, 0, 0, 0]], [[1, 0, 1, 0]])[1] == pytest.approx((0.5 + 0.65) / 2)


def test_pixels_diagonal_neighbours_are_one_region():
    # Half of the diagonal pair and all of the single pixel: 3/4; the rest comes with the normal pixels.
    scores, mask = np.zeros((4, 4)), np.zeros((4, 4))
    mask[0, 0] = mask[1, 1] = mask[3, 3] = 1
    scores[0, 0] = scores[3, 3] = 1
    assert metrics(scores, mask)[1] == pytest.approx((0.75 + 0.825) / 2)


def test_pixels_perfect_constant_and_random_maps():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 200))
    mask[20:60, 30:90] = mask[150:153, 150:153] = 1
    assert metrics(mask, mask) == (1.0, 1.0)
    assert metrics(np.full((200, 200), -7.0), mask) == pytest.approx((0.5, 0.15))
    many = [(rng.random((200, 200)), mask.astype(bool)) for _ in range(20)]
    assert tuple(pixel_metrics(many).values()) == pytest.approx((0.5, 0.15), abs=0.02)


@st.composite
def images(draw):
    shape = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    scores = draw(arrays(float, shape, elements=st.sampled_from([-2, -0.0, 0, 0.1, 0.3, 1e-7, 6e4])))
    return scores.astype(np.float16), draw(arrays(bool, shape))


@settings(max_examples=100, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_pixels_both_agree_with_going_through_the_thresholds_one_by_one(pairs):
    scores = np.concatenate([scores.ravel() for scores, _ in pairs]).astype(float)
    truth = np.concatenate([mask.ravel() for _, mask in pairs])
    found = pixel_metrics(pairs)
    if truth.all() or not truth.any():
        assert found == {"pixel_auroc": None, "aupro": None}
        return
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["aupro"] == pytest.approx(brute_force(pairs, scores[~truth]))


def brute_force(pairs, normal):
    regions = []
    for scores, mask in pairs:
        numbered, count = regions_of(mask, np.ones((3, 3)))
        regions += [scores[numbered == number].astype(float) for number in range(1, count + 1)]
    area, before = 0.0, (0.0, 0.0)
    for cut in np.unique(np.concatenate([normal, *regions]))[::-1]:
        x, y = np.mean(normal >= cut), np.mean([np.mean(region >= cut) for region in regions])
        end = min(x, 0.3)
        if end > before[0]:
            height = before[1] + (y - before[1]) * (end - before[0]) / (x - before[0])
            area += (end - before[0]) * (before[1] + height) / 2
        before = (x, y)
    return area / 0.3


@pytest.mark.parametrize("size", [(60, 60), (90, 222), (222, 90), (900, 40)])
@pytest.mark.parametrize("grid", [(16, 16), (64, 26), (7, 64)])
def test_pixels_a_map_lights_up_at_the_place_of_the_defect(size, grid):
    mask = np.zeros(size, bool)
    top, left = int(0.6 * size[0]), int(0.1 * size[1])
    mask[top : top + size[0] // 4, left : left + size[1] // 4] = True
    y, x = (np.arange(cells) + 0.5 for cells in grid)
    rows = np.exp(-(((y / grid[0] - 0.725) / 0.1) ** 2))
    columns = np.exp(-(((x / grid[1] - 0.225) / 0.1) ** 2))
    hot = rows[:, None] * columns
    assert pixel_metrics([(hot, mask)])["pixel_auroc"] > 0.98
    assert pixel_metrics([(hot[::-1], mask)])["pixel_auroc"] < 0.9
    assert pixel_metrics([(hot[:, ::-1], mask)])["pixel_auroc"] < 0.9


def test_pixels_only_images_with_a_map_and_a_known_mask_count(tmp_path):
    write_png(tmp_path / "mask.png", np.eye(8, dtype=np.uint8) * 255)
    rows = pd.DataFrame(
        {
            "image_id": ["masked", "unmasked", "normal", "unmapped"],
            "label": [1, 1, 0, 0],
            "mask_path": ["mask.png", "", "", ""],
            "width": 12,
            "height": 8,
        }
    )
    maps = {name: np.zeros((4, 6), np.float16) for name in ("masked", "unmasked", "normal")}
    pairs = list(masked_maps(rows, maps, tmp_path))
    assert [mask.sum() for _, mask in pairs] == [8, 0] and pairs[1][1].shape == (8, 12)


def test_pixels_maps_are_read_from_their_archive_and_broken_ones_named(tmp_path):
    path = tmp_path / "oof_maps.npz"
    assert len(Maps(path)) == 0
    with array_archive(path) as add:
        add("defect/a.png", np.ones((2, 3), np.float16))
        add("b.png", np.full((2, 3), np.inf, np.float16))
    maps = Maps(path)
    assert sorted(maps) == ["b.png", "defect/a.png"] and maps["defect/a.png"].shape == (2, 3)
    with pytest.raises(UserError, match="map b.png is not finite"):
        maps["b.png"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="oof_maps.npz is no archive of maps"):
        Maps(path)
