"""Synthetic anomalies: foreign texture blended into a normal image inside a Perlin mask (DRAEM, 3.3)."""

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from defects.data.transforms import rotate_flip
from defects.models.parts.perlin import perlin_mask
from defects.models.parts.textures import TextureSource

MOST_OF_ORIGINAL = 0.8  # the image keeps up to this share inside the mask
OPERATIONS = 3  # of the ten below, on each texture


def paste_anomaly(image: np.ndarray, source: TextureSource) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB [H, W, 3] -> the image with an anomaly in it, and its mask bool [H, W], which may be empty.

    The result stays in whole grey levels as photographs do: fractions would give the place away. A grey
    image gets a grey texture for the same reason.
    """
    mask = perlin_mask(image.shape[:2])
    texture = distort(source(image))
    if (image == image[..., :1]).all():
        texture = np.repeat(texture.mean(axis=2, keepdims=True), 3, axis=2)
    kept = np.random.uniform(0, MOST_OF_ORIGINAL)
    mixed = image.copy()
    mixed[mask] = np.rint(kept * image[mask] + (1 - kept) * texture[mask])
    return mixed, mask


def distort(texture: np.ndarray) -> np.ndarray:
    """Three different ones of the paper's ten operations on uint8 RGB [H, W, 3], each drawn anew."""
    pixels = torch.from_numpy(np.ascontiguousarray(texture)).permute(2, 0, 1)
    for index in np.random.choice(len(_OPERATIONS), OPERATIONS, replace=False):
        pixels = _OPERATIONS[index](pixels)
    return pixels.permute(1, 2, 0).numpy()


def _gamma(pixels: torch.Tensor) -> torch.Tensor:
    gammas = np.random.uniform(0.5, 2.0, len(pixels))
    channels = zip(pixels.split(1), gammas, strict=True)
    return torch.cat([functional.adjust_gamma(channel, gamma) for channel, gamma in channels])


def _brightness(pixels: torch.Tensor) -> torch.Tensor:
    factor, shift = np.random.uniform(0.8, 1.2), np.random.uniform(-30, 30)
    return (pixels * factor + shift).round().clamp(0, 255).byte()


def _sharpness(pixels: torch.Tensor) -> torch.Tensor:
    return functional.adjust_sharpness(pixels, np.random.uniform(0, 3))


def _hue_saturation(pixels: torch.Tensor) -> torch.Tensor:
    turned = functional.adjust_hue(pixels, np.random.uniform(-0.2, 0.2))
    return functional.adjust_saturation(turned, np.random.uniform(0.5, 1.5))


def _solarise(pixels: torch.Tensor) -> torch.Tensor:
    return functional.solarize(pixels, np.random.uniform(32, 128))


def _posterise(pixels: torch.Tensor) -> torch.Tensor:
    return functional.posterize(pixels, np.random.randint(1, 8))


def _affine(pixels: torch.Tensor) -> torch.Tensor:
    turned = rotate_flip(pixels.permute(1, 2, 0).numpy(), np.random.uniform(-45, 45), "none")
    return torch.from_numpy(turned).permute(2, 0, 1)


_OPERATIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    _gamma,
    _brightness,
    _sharpness,
    _hue_saturation,
    _solarise,
    _posterise,
    functional.invert,
    functional.autocontrast,
    functional.equalize,
    _affine,
]
