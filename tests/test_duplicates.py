"""Sibling search on generated textures: what must be found, what must not, and in any order."""

from functools import cache

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.config_schema import DuplicateConfig
from defects.data.duplicates import group_ids, search_siblings
from defects.data.registration import FLIPS, thumbnail

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
    return search_siblings(
        np.stack([thumbnail(image, config.thumbnail_size) for image in images]), config
    ).pairs


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
def test_siblings_finds_a_changed_photograph_and_nothing_else(change):
    assert found([FIRST, *OTHERS, CHANGED[change]]) == [(0, 21)]


@pytest.mark.parametrize("flip", FLIPS)
def test_siblings_finds_flips_and_quarter_turns_and_names_them(flip):
    turned = photo(scene(0), dx=6, dy=-5, gain=0.6)
    mirror = flip.removeprefix("transposed+")
    turned = turned[::-1] if mirror in ("vertical", "both") else turned
    turned = turned[:, ::-1] if mirror in ("horizontal", "both") else turned
    turned = turned.swapaxes(0, 1) if flip != mirror else turned  # undone by transposing, then mirroring
    pairs = siblings([FIRST, *OTHERS, turned])
    assert pairs[["i", "j", "flip"]].to_numpy().tolist() == [[0, 21, flip]]
    assert CONFIG.min_correlation <= pairs["correlation"][0] <= 1


def test_siblings_same_spectrum_with_other_phases_is_no_match():
    assert found([photo(scene(seed), gain=0.8) for seed in range(40)]) == []


def test_siblings_shared_black_area_is_no_match():
    strips = [photo(scene(seed)) for seed in range(20)]
    for strip in strips:
        strip[:, 100:] = 0
    assert found([*strips, jpeg(strips[3], 50)]) == [(3, 20)]


def test_siblings_flat_images_match_only_as_identical_files_and_never_when_one_coloured():
    black, grey = np.zeros_like(FIRST), np.full_like(FIRST, 128)
    scratch = grey.copy()
    scratch[50, 50:60] = 255
    rng = np.random.default_rng(0)
    noisy = [np.clip(grey + rng.normal(0, 1, grey.shape), 0, 255).astype(np.uint8) for _ in range(5)]
    pairs = siblings([black, black, grey, grey, scratch, scratch, *noisy])
    assert pairs[["i", "j", "correlation"]].to_numpy().tolist() == [[4, 5, 1.0]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_siblings_few_images(count):
    stack = np.stack([thumbnail(FIRST, 64)] * 2)[:count]
    pairs = search_siblings(stack, CONFIG).pairs
    assert list(pairs.columns) == ["i", "j", "correlation", "flip"]
    assert len(pairs) == (count == 2)


def test_siblings_more_copies_than_neighbours_form_one_group():
    config = DuplicateConfig(neighbours=4)
    copies = [photo(scene(0), gain=0.4 + 0.08 * k) for k in range(6)]
    groups = group_ids(6 + len(OTHERS), siblings([*copies, *OTHERS], config))
    assert groups.tolist() == [0] * 6 + list(range(1, 1 + len(OTHERS)))


PART_SIDE = 192  # pixels


def part(seed: int, degrees: float = 0.0, shift: float = 0.0) -> np.ndarray:
    """A stamped plate of one design with scratches of its own: float32 [PART_SIDE, PART_SIDE]."""
    rng = np.random.default_rng(seed)
    picture = np.full((PART_SIDE, PART_SIDE), 200, np.float32)
    cv2.rectangle(picture, (40, 50), (150, 140), 110.0, -1)
    for centre, radius, tone in (((60, 70), 9, 30.0), ((120, 80), 14, 180.0), ((80, 120), 6, 60.0)):
        cv2.circle(picture, centre, radius, tone, -1)
    for _ in range(6):
        start, step = rng.integers(45, 140, 2), rng.integers(-25, 25, 2)
        cv2.line(picture, start.tolist(), (start + step).tolist(), float(rng.uniform(80, 150)), 2)
    picture += 2 * cv2.GaussianBlur(rng.standard_normal(picture.shape).astype(np.float32), (0, 0), 1.5) / 0.19
    matrix = cv2.getRotationMatrix2D((95, 95), degrees, 1)
    matrix[:, 2] += shift
    return cv2.warpAffine(picture, matrix, picture.shape, borderMode=cv2.BORDER_REPLICATE)


def part_photo(picture: np.ndarray, seed: int, gain: float = 1.0) -> np.ndarray:
    """uint8 [PART_SIDE, PART_SIDE] with sensor noise of this seed."""
    noise = np.random.default_rng(seed).normal(0, 1.5, picture.shape)
    return np.clip(gain * picture + noise, 0, 255).astype(np.uint8)


def parts(count: int, is_rotated: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs of `count` parts, aligned or at any angle, and siblings of the first five."""
    angles = np.random.default_rng(0).uniform(0, 360, count) if is_rotated else np.zeros(count)
    images = [part_photo(part(seed, angles[seed], seed % 3), seed) for seed in range(count)]
    changed = [
        part_photo(part(0, angles[0]), 500, gain=0.7),
        part_photo(part(1, angles[1], shift=-5), 501),
        jpeg(images[2], 70)[..., 0],
        images[3][4:-5, 6:-3],
        images[4][::-1],
    ]
    return images, changed


@pytest.mark.parametrize("is_rotated", [False, True])
def test_siblings_of_parts_of_one_design_are_paired_and_other_parts_are_not(is_rotated):
    images, changed = parts(30, is_rotated)
    assert found([*images, *changed]) == [(k, 30 + k) for k in range(5)]


def test_siblings_few_parts_of_one_design_are_not_paired_but_copies_are():
    images, _ = parts(7, is_rotated=False)
    darker = (images[2] * 0.8).astype(np.uint8)
    assert found([*images, darker]) == [(2, 7)]


def test_siblings_a_few_parts_among_textures_are_not_paired():
    images, _ = parts(10, is_rotated=False)
    textures = [thumbnail(photo(scene(seed)), PART_SIDE) for seed in range(100, 130)]
    assert found([*textures, *images, textures[4][:, ::-1]]) == [(4, 40)]


def test_siblings_chain_of_halves_does_not_join_its_ends():
    """Neighbours in the chain have one half in common, its ends nothing."""
    left_halves, right_halves = [0, 2, 2, 4], [1, 1, 3, 3]
    halves = [thumbnail(photo(scene(seed)), 128)[:, :64] for seed in range(5)]
    chain = [
        np.hstack([halves[left], halves[right]])
        for left, right in zip(left_halves, right_halves, strict=True)
    ]
    images = [*chain, *OTHERS]
    groups = group_ids(len(images), siblings(images))
    assert np.bincount(groups[:4]).max() <= 2


def test_siblings_search_tells_what_different_objects_have_in_common():
    images, changed = parts(30, is_rotated=False)
    search = search_siblings(np.stack([thumbnail(image, 128) for image in [*images, *changed]]), CONFIG)
    assert search.kind == "alike"
    assert CONFIG.min_correlation < search.chance_level < search.threshold < 1
    textures = search_siblings(np.stack([thumbnail(image, 128) for image in OTHERS]), CONFIG)
    assert textures.kind == "apart" and textures.chance_level < CONFIG.min_correlation


POOL = [
    thumbnail(image, CONFIG.thumbnail_size)
    for image in [*OTHERS[:8], *CHANGED.values(), *(photo(scene(k), dx=4)[::-1] for k in range(100, 104))]
]


@cache
def correlations_of_pool(order: tuple[int, ...]) -> dict[frozenset[int], float]:
    """The pairs of the POOL in this order, by their places in POOL."""
    pairs = search_siblings(np.stack([POOL[k] for k in order]), CONFIG).pairs
    ends = [frozenset((order[i], order[j])) for i, j in zip(pairs["i"], pairs["j"], strict=True)]
    return dict(zip(ends, pairs["correlation"], strict=True))


@settings(max_examples=3, deadline=None)
@given(st.permutations(range(len(POOL))))
def test_siblings_order_of_images_does_not_matter(order):
    expected = correlations_of_pool(tuple(range(len(POOL))))
    got = correlations_of_pool(tuple(order))
    assert got.keys() == expected.keys()
    assert all(abs(got[pair] - expected[pair]) < 1e-3 for pair in got)


def test_siblings_repeats_exactly():
    images = [*CHANGED.values(), *OTHERS]
    pd.testing.assert_frame_equal(siblings(images), siblings(images))


def test_siblings_group_ids_are_transitive_and_numbered_by_first_occurrence():
    pairs = pd.DataFrame({"i": [1, 3, 0], "j": [3, 5, 4]})
    assert group_ids(7, pairs).tolist() == [0, 1, 2, 1, 0, 1, 3]
    assert group_ids(3, pairs.iloc[:0]).tolist() == [0, 1, 2]
