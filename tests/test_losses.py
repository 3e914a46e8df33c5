"""Structural similarity and focal loss against their definitions, written out with numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from defects.messages import UserError
from defects.models.losses import focal, ssim


def by_definition(a: np.ndarray, b: np.ndarray, window: int, sigma: float) -> np.ndarray:
    """SSIM [B, C, H, W] of float64 images [B, C, H, W]."""

    def average(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, sigma, mode="mirror", radius=window // 2, axes=(2, 3))

    mean_a, mean_b = average(a), average(b)
    variance_a, variance_b = average(a**2) - mean_a**2, average(b**2) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    return above / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2))


def noisy_pair(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    a = rng.random(shape, np.float32)
    return torch.from_numpy(a), torch.from_numpy(np.clip(a + rng.normal(0, 0.2, shape), 0, 1).astype("f4"))


@pytest.mark.parametrize(("size", "window", "sigma"), [((40, 23), 11, 1.5), ((17, 64), 7, 1.0)])
def test_losses_ssim_is_what_its_definition_says(size, window, sigma):
    a, b = noisy_pair((2, 3, *size))
    expected = by_definition(a.double().numpy(), b.double().numpy(), window, sigma)
    np.testing.assert_allclose(ssim(a, b, window, sigma), expected, atol=2e-5)


def test_losses_ssim_of_an_interior_pixel_summed_by_hand():
    a, b = (image[0, 0].double().numpy() for image in noisy_pair((1, 1, 11, 11)))
    bell = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(bell, bell) / bell.sum() ** 2
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    spread = (weight * (a - mean_a) ** 2).sum() + (weight * (b - mean_b) ** 2).sum()
    covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (spread + 9e-4)
    found = ssim(*(torch.from_numpy(image).view(1, 1, 11, 11) for image in (a, b)))[0, 0, 5, 5]
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_losses_identical_images_are_fully_similar():
    a, _ = noisy_pair((2, 3, 16, 20))
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert ssim(a, a).min() > 1 - 1e-4
    assert ssim(flat, flat).min() > 1 - 1e-4


def test_losses_ssim_keeps_its_precision_under_autocast():
    a, b = noisy_pair((1, 3, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssim(a, b)
    assert torch.equal(mixed, ssim(a, b))


@pytest.mark.parametrize(("window", "message"), [(11, "does not fit images of 8 x 30"), (6, "make it odd")])
def test_losses_unsuitable_window(window, message):
    image = torch.zeros(1, 1, 8, 30)
    with pytest.raises(UserError, match=message):
        ssim(image, image, window)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 4.0])
def test_losses_focal_is_what_draem_publishes(gamma):
    logits = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    target = (torch.arange(70).view(2, 1, 5, 7) % 3 == 0).float()
    normal, defective = logits.double().softmax(1).split(1, 1)
    probability = torch.where(target == 1, defective, normal) + 1e-5
    expected = -((1 - probability).abs() ** gamma) * probability.log()
    torch.testing.assert_close(focal(logits, target, gamma).double(), expected, atol=2e-5, rtol=2e-3)


def test_losses_focal_teaches_where_it_is_confidently_wrong():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    loss = focal(logits, torch.ones(1, 1, 1, 1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(400)
    assert logits.grad.flatten().tolist() == [1, -1]
