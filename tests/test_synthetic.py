"""Drawn defects: where, how often, in which images; the same ones for the same seed."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import texture
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.data.added_defects import Synthetic, draw_defect
from defects.data.datasets import training_loader
from defects.data.labels import Labels
from defects.stages import ensure_tables

SIDE = 64


def image(seed=0, height=SIDE, width=SIDE):
    side = max(height, width)
    return np.repeat(texture(seed, side)[:height, :width, None], 3, axis=2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 90), width=st.integers(16, 90))
def test_a_drawn_defect_is_seen_where_its_mask_is(seed, height, width):
    before = image(1, height, width)
    after, mask = draw_defect(before, np.random.default_rng(seed))
    assert (
        after.dtype == mask.dtype == np.uint8
        and after.shape == before.shape
        and mask.shape == (height, width)
    )
    assert 0 < mask.sum() < mask.size
    change = np.abs(after.astype(int) - before).mean(axis=2)
    assert change[mask > 0].mean() > 4 * change[mask == 0].mean()


def test_drawn_defects_are_of_many_sizes_darker_and_brighter():
    found = [draw_defect(image(2, 128, 128), np.random.default_rng(seed)) for seed in range(200)]
    areas = np.array([mask.mean() for _, mask in found])
    assert np.quantile(areas, 0.05) < 0.005 and np.quantile(areas, 0.95) > 0.1
    shift = [(after.astype(int) - image(2, 128, 128))[mask > 0].mean() for after, mask in found]
    assert 0.3 < np.mean(np.array(shift) > 0) < 0.7


def test_only_normal_images_get_one_and_as_often_as_asked_for():
    rows = pd.DataFrame({"label": [0, 1] * 50})
    paint = Synthetic(rows, 0.3, seed=0)
    made = {row: [paint(epoch, row, image()) for epoch in range(10)] for row in range(100)}
    assert all(each is None for row in range(1, 100, 2) for each in made[row])
    found = [each for row in range(0, 100, 2) for each in made[row]]
    assert np.mean([each is not None for each in found]) == pytest.approx(0.3, abs=0.07)
    assert all(each.label.tolist() == [1] and each.mask.shape == (SIDE, SIDE, 1) for each in found if each)


def test_the_same_seed_epoch_and_row_draw_the_same():
    rows = pd.DataFrame({"label": [0, 1]})
    first, again, other = (Synthetic(rows, 1.0, seed)(3, 0, image()) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, Synthetic(rows, 1.0, 5)(4, 0, image()).image)


def test_the_training_loader_draws_them_and_labels_them(make_dataset, make_config):
    config = make_config(make_dataset(), "train.synthetic=1.0")
    batches = list(training_loader(config, ensure_tables(config).folds, Labels(masks=True)))
    labels, masks = (torch.cat([batch[name] for batch in batches]) for name in ("label", "mask"))
    assert labels.min() == 1 and masks.flatten(1).amax(1).min() == 1  # normal images all got a defect


def test_classes_of_defects_refuse_it(make_dataset, config_file, fails_with_one_line):
    path = config_file(make_dataset(), train={"synthetic": 0.5})
    message = fails_with_one_line("train.py", "--config", path, "--set", "data.classes=[a, b]")
    assert "train.synthetic" in message and "data.classes" in message


def test_a_detector_of_normal_images_refuses_it(make_dataset, config_file, fails_with_one_line):
    path = config_file(make_dataset(), train={"synthetic": 0.5})
    message = fails_with_one_line(
        "train.py", "--config", path, "--model", "convae_reduced", "--set", "train.synthetic=0.5"
    )
    assert "train.synthetic=0.5" in message and "only normal images" in message
