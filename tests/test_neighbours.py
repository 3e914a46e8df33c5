"""Nearest spectra by an index of faiss, on so few images that all pairs can be compared as well."""

import sys

import numpy as np
import pytest
import torch
from conftest import texture

from defects.data import neighbours
from defects.data.neighbours import NeighbourSearch, propose_pairs
from defects.data.registration import FLIPS, extract_detail, half_spectrum

IMAGES = 120
SIDE = 64  # pixels
FLIPPED = {0: "horizontal", 7: "vertical", 11: "transposed+none", 29: "none", 64: "transposed+horizontal"}


def flip(picture: np.ndarray, name: str) -> np.ndarray:
    kind = name.removeprefix("transposed+")
    picture = picture.T if name != kind else picture
    picture = picture[:, ::-1] if kind in ("horizontal", "both") else picture
    return picture[::-1] if kind in ("vertical", "both") else picture


@pytest.fixture(scope="module")
def spectra() -> torch.Tensor:
    """Of IMAGES textures, and of the FLIPPED ones among them, flipped and shifted, behind those."""
    pictures = [texture(seed, SIDE) for seed in range(IMAGES)]
    for place, name in FLIPPED.items():
        pictures.append(np.roll(flip(pictures[place], name), 3, axis=1))
    halves = [half_spectrum(extract_detail(np.ascontiguousarray(picture))) for picture in pictures]
    return torch.from_numpy(np.stack(halves))


@pytest.fixture
def contents(spectra) -> np.ndarray:
    """Made-up hashes of the pictures."""
    places = np.random.default_rng(0).permutation(len(spectra))
    return np.array([f"{place:04d}" for place in places], dtype=object)


@pytest.fixture
def small_cells(monkeypatch) -> None:
    """An index even for so few images."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "MOST_COMPARED", 20)
    monkeypatch.setattr(neighbours, "CELL_IMAGES", 8)
    monkeypatch.setattr(neighbours, "CELLS_SEARCHED", 6)


def closest(search: NeighbourSearch) -> list[tuple[int, str]]:
    """Of the images behind the first IMAGES: the nearest one, and the flip without half a turn."""
    places, codes = search.find_nearest(3)
    return [(int(places[row, 0]), FLIPS[codes[row, 0]]) for row in range(IMAGES, len(places))]


def test_find_nearest_all_pairs_and_index_find_the_same_flipped_pictures(spectra, contents, small_cells):
    by_index = closest(NeighbourSearch(spectra, contents))
    neighbours.MOST_COMPARED = 1000  # undone with small_cells
    assert by_index == closest(NeighbourSearch(spectra, contents))
    assert [place for place, _ in by_index] == list(FLIPPED)


def test_find_nearest_by_index_does_not_depend_on_the_order_of_images(spectra, contents, small_cells):
    places, codes = NeighbourSearch(spectra, contents).find_nearest(5)
    order = np.random.default_rng(1).permutation(len(spectra))
    others, other_codes = NeighbourSearch(spectra[order], contents[order]).find_nearest(5)
    np.testing.assert_array_equal(order[others], places[order])
    np.testing.assert_array_equal(other_codes, codes[order])


def test_find_nearest_by_index_repeats_exactly(spectra, contents, small_cells):
    first = NeighbourSearch(spectra, contents).find_nearest(5)
    again = NeighbourSearch(spectra, contents).find_nearest(5)
    np.testing.assert_array_equal(first, again)


def test_find_nearest_by_index_never_names_the_image_itself(spectra, contents, small_cells, monkeypatch):
    """Also where the cells that are searched hold fewer images than are asked for."""
    monkeypatch.setattr(neighbours, "CELL_IMAGES", 2)
    monkeypatch.setattr(neighbours, "CELLS_SEARCHED", 1)
    places, codes = NeighbourSearch(spectra, contents).find_nearest(20)
    assert places.shape == (len(spectra), 20)
    assert (places != np.arange(len(spectra))[:, None]).all()
    pairs = propose_pairs(places, codes)
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_find_nearest_compares_all_pairs_with_a_note_without_faiss(spectra, contents, monkeypatch, capsys):
    monkeypatch.setattr(neighbours, "MOST_COMPARED", 20)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert [place for place, _ in closest(NeighbourSearch(spectra, contents))] == list(FLIPPED)
    assert f"note: all pairs of {len(spectra)} images are compared" in capsys.readouterr().err
