"""Synthetic anomalies: what is pasted where, the textures, and Perlin noise against its definition."""

import numpy as np
import pytest
from conftest import texture

from defects.models import synthetic_anomalies
from defects.models.synthetic_anomalies import distort, draw_texture, paste_anomaly, perlin_mask, perlin_noise


def test_anomaly_the_image_keeps_at_most_four_fifths_inside_the_mask(monkeypatch):
    monkeypatch.setattr(synthetic_anomalies, "distort", lambda pixels: pixels)
    np.random.seed(0)
    black, shares = np.zeros((64, 64, 3), np.uint8), []
    for _ in range(60):
        mixed, mask = paste_anomaly(black, lambda image: np.full_like(image, 200))
        shares += [1 - mixed[mask].mean() / 200] if mask.any() else []
    assert min(shares) < 0.1
    assert 0.7 < max(shares) < 0.81


@pytest.mark.parametrize("grey", [True, False])
def test_a_grey_image_gets_a_grey_anomaly(grey):
    np.random.seed(0)
    image = np.repeat(texture(0, 64)[..., None], 3, axis=2)
    image[..., 0] //= 1 if grey else 2
    mixed, mask = paste_anomaly(image, lambda same: np.full_like(same, (250, 100, 5)))
    assert mask.any()
    spread = mixed[mask].max(axis=1).astype(int) - mixed[mask].min(axis=1)
    assert (spread.max() == 0) == grey


def test_anomaly_drawn_textures_differ_and_keep_the_size():
    np.random.seed(0)
    image = np.random.randint(0, 256, (40, 72, 3), dtype=np.uint8)
    drawn = np.stack([draw_texture(image) for _ in range(40)])
    assert drawn.shape == (40, 40, 72, 3)
    assert drawn.dtype == np.uint8
    assert np.std(drawn.mean(axis=(1, 2, 3))) > 20
    assert len({each.tobytes() for each in drawn}) == 40


def test_anomaly_every_operation_keeps_shape_and_type():
    np.random.seed(0)
    image = np.random.randint(0, 256, (40, 72, 3), dtype=np.uint8)
    made = [distort(image) for _ in range(40)]
    assert {(each.shape, each.dtype) for each in made} == {(image.shape, image.dtype)}
    assert np.mean([(each != image).any() for each in made]) > 0.9


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
def test_anomaly_noise_is_what_the_definition_says(size, scales):
    np.random.seed(3)
    noise = perlin_noise(size, scales)
    np.random.seed(3)
    # The lattice has one point more than cells on each axis; each gradient is a unit vector.
    angles = np.random.uniform(0, 2 * np.pi, (scales[0] + 1, scales[1] + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    for i, j in zip(np.random.randint(size[0], size=20), np.random.randint(size[1], size=20), strict=True):
        expected = by_definition(gradients, i * scales[0] / size[0], j * scales[1] / size[1])
        assert noise[i, j] == pytest.approx(expected, abs=1e-5)


def test_anomaly_noise_vanishes_at_lattice_points_only():
    noise = perlin_noise((96, 64), (8, 4))
    assert np.abs(noise[::12, ::16]).max() < 1e-6
    assert np.abs(noise[6::12, 8::16]).max() > 0.1


def test_anomaly_noise_spans_its_range():
    np.random.seed(0)
    noise = np.stack([perlin_noise((128, 128), (16, 16)) for _ in range(8)])
    assert 0.7 < noise.max() <= 1
    assert -1 <= noise.min() < -0.7
    assert abs(noise.mean()) < 0.05


def test_anomaly_a_turned_lattice_turns_the_noise():
    """A quarter turn about the centre of a square moves the lattice points on the border to the other one."""
    noise = perlin_noise((65, 65), (65 / 16, 65 / 16), angle=90)
    assert np.abs(noise[::16, ::16]).max() < 1e-4
    skewed = perlin_noise((65, 65), (65 / 16, 65 / 16), angle=30)
    assert np.abs(skewed[::16, ::16]).max() > 0.05


@pytest.mark.parametrize("size", [(64, 64), (40, 250), (17, 3), (1, 1)])
def test_anomaly_mask_has_the_size_asked_for(size):
    mask = perlin_mask(size)
    assert mask.shape == size
    assert mask.dtype == bool


def test_anomaly_masks_cover_a_small_part_and_may_be_empty():
    np.random.seed(0)
    shares = np.array([perlin_mask((64, 64)).mean() for _ in range(200)])
    assert 0.02 < shares.mean() < 0.10
    assert shares.max() < 0.5
    assert 0 < (shares == 0).mean() < 0.2


def test_anomaly_a_lower_threshold_covers_more():
    shares = []
    for threshold in (0.6, 0.2):
        np.random.seed(0)
        shares.append(np.mean([perlin_mask((64, 64), threshold).mean() for _ in range(50)]))
    assert shares[0] < shares[1] / 2


def test_anomaly_masks_reach_the_corners_whatever_the_turn():
    np.random.seed(0)
    corners = [perlin_mask((32, 32), threshold=0.0, rotate=90)[0, 0] for _ in range(200)]
    assert 0.3 < np.mean(corners) < 0.7
