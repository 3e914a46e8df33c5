"""Perlin noise against its definition, and the masks cut from it."""

import numpy as np
import pytest

from defects.models.parts.perlin import perlin_mask, perlin_noise


def by_definition(gradients: np.ndarray, y: float, x: float) -> float:
    """Perlin noise at one point, in cells, times the square root of two."""
    row, column = int(y), int(x)
    value = 0.0
    for i, j in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
        offset = np.array([y - i, x - j])
        weights = [1 - (6 * d**5 - 15 * d**4 + 10 * d**3) for d in abs(offset)]
        value += np.prod(weights) * gradients[i, j] @ offset
    return np.sqrt(2) * value


@pytest.mark.parametrize(("size", "scales"), [((64, 64), (4, 4)), ((30, 47), (3, 8)), ((5, 90), (1, 7))])
def test_noise_is_what_the_definition_says(size, scales):
    np.random.seed(3)
    noise = perlin_noise(size, scales)
    np.random.seed(3)
    # The lattice has one point more than cells on each axis; each gradient is a unit vector.
    angles = np.random.uniform(0, 2 * np.pi, (scales[0] + 1, scales[1] + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    for i, j in zip(np.random.randint(size[0], size=20), np.random.randint(size[1], size=20), strict=True):
        expected = by_definition(gradients, i * scales[0] / size[0], j * scales[1] / size[1])
        assert noise[i, j] == pytest.approx(expected, abs=1e-5)


def test_noise_vanishes_at_lattice_points_only():
    noise = perlin_noise((96, 64), (8, 4))
    assert np.abs(noise[::12, ::16]).max() < 1e-6
    assert np.abs(noise[6::12, 8::16]).max() > 0.1


def test_noise_spans_its_range():
    np.random.seed(0)
    noise = np.stack([perlin_noise((128, 128), (16, 16)) for _ in range(8)])
    assert 0.7 < noise.max() <= 1
    assert -1 <= noise.min() < -0.7
    assert abs(noise.mean()) < 0.05


def test_a_turned_lattice_turns_the_noise():
    """A quarter turn about the centre of a square moves the lattice points on the border to the other one."""
    noise = perlin_noise((65, 65), (65 / 16, 65 / 16), angle=90)
    assert np.abs(noise[::16, ::16]).max() < 1e-4
    skewed = perlin_noise((65, 65), (65 / 16, 65 / 16), angle=30)
    assert np.abs(skewed[::16, ::16]).max() > 0.05


@pytest.mark.parametrize("size", [(64, 64), (40, 250), (17, 3), (1, 1)])
def test_mask_has_the_size_asked_for(size):
    mask = perlin_mask(size)
    assert mask.shape == size
    assert mask.dtype == bool


def test_masks_cover_a_small_part_and_may_be_empty():
    np.random.seed(0)
    shares = np.array([perlin_mask((64, 64)).mean() for _ in range(200)])
    assert 0.02 < shares.mean() < 0.10
    assert shares.max() < 0.5
    assert 0 < (shares == 0).mean() < 0.2


def test_a_lower_threshold_covers_more():
    shares = []
    for threshold in (0.6, 0.2):
        np.random.seed(0)
        shares.append(np.mean([perlin_mask((64, 64), threshold).mean() for _ in range(50)]))
    assert shares[0] < shares[1] / 2


def test_masks_reach_the_corners_whatever_the_turn():
    np.random.seed(0)
    corners = [perlin_mask((32, 32), threshold=0.0, rotate=90)[0, 0] for _ in range(200)]
    assert 0.3 < np.mean(corners) < 0.7
