"""Sibling search on generated textures: what must be found, what must not, and in any order."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.config_data import DuplicateConfig
from defects.data.duplicates import FLIPS, find_siblings, group_ids, thumbnail

HEIGHT, WIDTH, MARGIN = 180, 240, 10  # pixels; the margin is 4 % of the width
CONFIG = DuplicateConfig()


def scene(seed: int) -> np.ndarray:
    """Steel-like texture: random phases under one power spectrum, float32 [H + 2 margins, W + 2 margins]."""
    shape = (HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    picture = sum(sigma * cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (1, 4, 16))
    return cv2.normalize(picture, None, 0.1, 0.9, cv2.NORM_MINMAX)


def photo(picture: np.ndarray, dx: int = 0, dy: int = 0, gain: float = 1.0, gamma: float = 1.0) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a scene, shifted by dx, dy pixels."""
    view = picture[MARGIN + dy : MARGIN + dy + HEIGHT, MARGIN + dx : MARGIN + dx + WIDTH]
    grey = np.clip(255 * gain * view**gamma, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def siblings(images: list[np.ndarray], config: DuplicateConfig = CONFIG) -> pd.DataFrame:
    return find_siblings(np.stack([thumbnail(image, config.thumbnail_size) for image in images]), config)


def found(images: list[np.ndarray]) -> list[tuple[int, int]]:
    pairs = siblings(images)
    return list(zip(pairs["i"], pairs["j"], strict=True))


OTHERS = [photo(scene(seed)) for seed in range(100, 120)]
FIRST = photo(scene(0))
CHANGED = {
    "copy": FIRST,
    "darker": photo(scene(0), gain=0.3),
    "overexposed": photo(scene(0), gain=1.5),
    "gamma": photo(scene(0), gamma=2.0),
    "shifted right": photo(scene(0), dx=MARGIN),
    "shifted up, left and darker": photo(scene(0), dx=-MARGIN, dy=-7, gain=0.4, gamma=0.7),
    "compressed": jpeg(FIRST, 20),
    "cropped": FIRST[4:-4, 5:-3],
    "half the size": cv2.resize(FIRST, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("change", CHANGED)
def test_finds_a_changed_photograph_and_nothing_else(change):
    assert found([FIRST, *OTHERS, CHANGED[change]]) == [(0, 21)]


@pytest.mark.parametrize("flip", FLIPS)
def test_finds_flips_and_quarter_turns_and_names_them(flip):
    turned = photo(scene(0), dx=6, dy=-5, gain=0.6)
    mirror = flip.removeprefix("transposed+")
    turned = turned[::-1] if mirror in ("vertical", "both") else turned
    turned = turned[:, ::-1] if mirror in ("horizontal", "both") else turned
    turned = turned.swapaxes(0, 1) if flip != mirror else turned  # undone by transposing, then mirroring
    pairs = siblings([FIRST, *OTHERS, turned])
    assert pairs[["i", "j", "flip"]].to_numpy().tolist() == [[0, 21, flip]]
    assert CONFIG.min_correlation <= pairs["correlation"][0] <= 1


def test_same_spectrum_with_other_phases_is_no_match():
    assert found([photo(scene(seed), gain=0.8) for seed in range(40)]) == []


def test_shared_black_area_is_no_match():
    strips = [photo(scene(seed)) for seed in range(20)]
    for strip in strips:
        strip[:, 100:] = 0
    assert found([*strips, jpeg(strips[3], 50)]) == [(3, 20)]


def test_flat_images_match_only_as_identical_files_and_never_when_one_coloured():
    black, grey = np.zeros_like(FIRST), np.full_like(FIRST, 128)
    scratch = grey.copy()
    scratch[50, 50:60] = 255
    rng = np.random.default_rng(0)
    noisy = [np.clip(grey + rng.normal(0, 1, grey.shape), 0, 255).astype(np.uint8) for _ in range(5)]
    pairs = siblings([black, black, grey, grey, scratch, scratch, *noisy])
    assert pairs[["i", "j", "correlation"]].to_numpy().tolist() == [[4, 5, 1.0]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count):
    stack = np.stack([thumbnail(FIRST, 64)] * 2)[:count]
    pairs = find_siblings(stack, CONFIG)
    assert list(pairs.columns) == ["i", "j", "correlation", "flip"]
    assert len(pairs) == (count == 2)


def test_more_copies_than_neighbours_form_one_group():
    images = [photo(scene(0), gain=0.4 + 0.02 * k) for k in range(3 * CONFIG.neighbours)]
    assert group_ids(len(images), siblings(images)).max() == 0


POOL = [
    thumbnail(image, CONFIG.thumbnail_size)
    for image in [*OTHERS[:8], *CHANGED.values(), *(photo(scene(k), dx=4)[::-1] for k in range(100, 104))]
]


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(len(POOL))))
def test_order_of_images_does_not_matter(order):
    def correlations(order):
        pairs = find_siblings(np.stack([POOL[k] for k in order]), CONFIG)
        ends = zip(pairs["i"], pairs["j"], strict=True)
        return dict(
            zip((frozenset((order[i], order[j])) for i, j in ends), pairs["correlation"], strict=True)
        )

    expected, got = correlations(range(len(POOL))), correlations(order)
    assert got.keys() == expected.keys()
    assert all(abs(got[pair] - expected[pair]) < 1e-3 for pair in got)


def test_repeats_exactly():
    images = [*CHANGED.values(), *OTHERS]
    pd.testing.assert_frame_equal(siblings(images), siblings(images))


def test_group_ids_are_transitive_and_numbered_by_first_occurrence():
    pairs = pd.DataFrame({"i": [1, 3, 0], "j": [3, 5, 4]})
    assert group_ids(7, pairs).tolist() == [0, 1, 2, 1, 0, 1, 3]
    assert group_ids(3, pairs.iloc[:0]).tolist() == [0, 1, 2]
