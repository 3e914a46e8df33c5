"""Laying one picture on another: shifts, flips, small turns and crops."""

import cv2
import numpy as np
import pytest
import torch
from conftest import texture

from defects.data import registration
from defects.data.registration import FLIPS


@pytest.mark.parametrize("side", [32, 33])
def test_registration_correlation_at_near_shifts_is_that_of_the_whole_transform(side):
    spectrum = torch.fft.rfft2(torch.randn(3, side, side, generator=torch.Generator().manual_seed(0)))
    whole = torch.fft.irfft2(spectrum, s=(side, side))
    shifts = torch.arange(-4, 6)
    expected = whole[:, shifts][:, :, shifts]
    assert torch.allclose(registration.correlate_at_shifts(spectrum, shifts), expected, atol=1e-5)


@pytest.mark.parametrize("name", FLIPS)
def test_registration_flips_of_images_pictures_and_matrices_agree(name):
    picture = texture(0, 40).astype(np.float32)
    code = FLIPS.index(name)
    flipped = registration.flip_image(picture, name)
    by_code = registration.flip_pictures(torch.from_numpy(picture)[None], code)[0].numpy()
    np.testing.assert_array_equal(flipped, by_code)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    by_matrix = cv2.warpAffine(picture, registration.flip_matrix(code, 40)[:2], (40, 40), flags=flags)
    np.testing.assert_allclose(flipped, by_matrix, atol=1e-3)


def test_registration_refinement_follows_a_small_turn_and_a_crop():
    picture = cv2.resize(texture(0, 64), (128, 128), interpolation=cv2.INTER_CUBIC)
    matrix = cv2.getRotationMatrix2D((64, 64), 1.5, 1.05)
    moved = cv2.warpAffine(picture, matrix, (128, 128), borderMode=cv2.BORDER_REFLECT)
    still = registration.extract_texture(picture, 2.0)
    moved = registration.extract_texture(moved, 2.0)
    before = registration.measure_agreement(still, moved, np.eye(3))
    after = registration.measure_agreement(still, moved, registration.refine(still, moved, np.eye(3)))
    assert after > before + 0.5


def test_registration_any_angle_is_recovered_from_the_spectra():
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.standard_normal((181, 181)).astype(np.float32), (0, 0), 2)
    matrix = cv2.getRotationMatrix2D((90, 90), 37, 1)
    rotated = cv2.warpAffine(scene, matrix, (181, 181))
    window = np.outer(np.hanning(64), np.hanning(64)).astype(np.float32)
    still, moved = (picture[58:122, 58:122] * window for picture in (scene, rotated))
    spectra = [registration.compute_polar_spectrum(picture, 1.0) for picture in (still, moved)]
    rotations = registration.find_likely_rotations(*spectra)
    angles = [degrees for is_mirrored, degrees in rotations if not is_mirrored]
    assert any(abs(angle - 143) < 4 for angle in angles)  # half a turn is left open
