"""Very many images: arrays in files instead of memory change no result."""

import threading

import numpy as np
import pandas as pd
import pytest
from conftest import raising, texture

from defects.config_schema import DuplicateConfig
from defects.data import bounded_memory, neighbours, registration
from defects.data.duplicates import search_siblings
from defects.messages import UserError

SETTINGS = DuplicateConfig(neighbours=4)


@pytest.fixture(scope="module")
def thumbnails():
    """40 textures, a picture without any, and changed copies of the first eight: uint8 [49, 64, 64]."""
    pictures = [texture(seed, 64) for seed in range(40)]
    copies = [np.rot90(picture, turns)[:, ::-1] // 2 for turns, picture in enumerate(pictures[:8])]
    return np.stack([*pictures, np.full((64, 64), 128, np.uint8), *copies])


@pytest.fixture(scope="module")
def expected(thumbnails):
    """The pairs that are found in memory and at once."""
    return search_siblings(thumbnails, SETTINGS).pairs


@pytest.mark.parametrize("tile", [1, 7, 2**13])
def test_search_siblings_in_tiles_and_in_files(tmp_path, thumbnails, expected, monkeypatch, tile):
    assert expected[["i", "j"]].to_numpy().tolist() == [[k, 41 + k] for k in range(8)]
    monkeypatch.setattr(bounded_memory, "MAX_ARRAY_BYTES", 0)
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    monkeypatch.setattr(registration, "PAIR_BLOCK", 5)
    pairs = search_siblings(thumbnails, SETTINGS, tmp_path).pairs
    pd.testing.assert_frame_equal(pairs, expected, rtol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_allocate_array_in_a_file_that_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_memory, "MAX_ARRAY_BYTES", 1000)
    large = bounded_memory.allocate_array((500, 3), np.uint8, tmp_path)
    large[:] = 7
    assert isinstance(large, np.memmap) and large.sum() == 10_500
    assert not isinstance(bounded_memory.allocate_array((10, 3), np.uint8, tmp_path), np.memmap)
    assert not isinstance(bounded_memory.allocate_array((500, 3), np.uint8, None), np.memmap)
    del large
    assert list(tmp_path.iterdir()) == []


def test_allocate_array_names_a_disk_that_is_too_small(tmp_path):
    with pytest.raises(UserError, match=r"needs 1000000000.0 GB .* free it, or lower split.duplicates"):
        bounded_memory.allocate_array((10**9, 10**9), np.uint8, tmp_path)


def test_in_threads_keeps_the_order_and_runs_no_further_than_the_limit(monkeypatch):
    monkeypatch.setattr(bounded_memory, "ROWS_IN_PROGRESS", 10)
    started = set()
    lock = threading.Lock()

    def add(unit, ten):
        with lock:
            started.add(unit)
        return unit + ten

    units = pd.Series(range(35))
    tens = list(range(0, 350, 10))
    for number, result in enumerate(bounded_memory.in_threads(add, units, tens, text="adding")):
        assert result == 11 * number
        assert max(started) < 10 * (number // 10 + 1)
    assert number == 34
    with pytest.raises(UserError, match="broken"):
        list(bounded_memory.in_threads(raising(UserError("broken")), units, text="adding"))
