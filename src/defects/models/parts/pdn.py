"""Patch description networks: EfficientAD's teacher and student, and the teacher's file."""

from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from defects.errors import UserError
from defects.tensors import load_tensors

Size = Literal["small", "medium"]

STRIDE, FIELD = 4, 33  # pixels between neighbouring outputs, and pixels that one of them sees
WIDTHS = {"small": (128, 256), "medium": (256, 512)}
SHAPE = ("size", "width", "channels")  # what a teacher's file must agree on with the config


class PatchDescription(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> one description of `channels` numbers per patch of 33 x 33 pixels.

    Batzner et al. 2023 (arXiv 2303.14535), tables 5 and 6. Without padding, output (i, j) sees the pixels
    from (4i, 4j) to (4i + 32, 4j + 32) and 256 pixels make 56 outputs; with padding they make 64. The
    weights are the same: the teacher is distilled with padding and used without, since zeros around an
    image would be described like defects. `width` multiplies the published numbers of hidden channels.
    """

    def __init__(self, size: Size, width: float, channels: int, padding: bool = False):
        super().__init__()
        first, deep = (scaled(published, width) for published in WIDTHS[size])
        pad = int(padding)
        layers = [
            *(nn.Conv2d(3, first, 4, padding=3 * pad), nn.ReLU(inplace=True), nn.AvgPool2d(2, 2, pad)),
            *(nn.Conv2d(first, deep, 4, padding=3 * pad), nn.ReLU(inplace=True), nn.AvgPool2d(2, 2, pad)),
            *(nn.Conv2d(deep, deep, 3, padding=pad), nn.ReLU(inplace=True), nn.Conv2d(deep, channels, 4)),
        ]
        if size == "medium":
            layers[6:6] = [nn.Conv2d(deep, deep, 1), nn.ReLU(inplace=True)]
            layers += [nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)]
        self.layers = nn.Sequential(*layers).apply(initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(standardized(images))


class ChannelMoments:
    """Mean and standard deviation per channel over any number of maps [B, C, h, w], in one pass."""

    def __init__(self, channels: int):
        self.sums, self.count = torch.zeros(2, channels, dtype=torch.float64), 0

    def add(self, maps: torch.Tensor) -> None:
        values = maps.transpose(0, 1).flatten(1).cpu().double()
        self.sums += torch.stack([values.sum(1), values.square().sum(1)])
        self.count += values.shape[1]

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [1, C, 1, 1] each; no deviation is zero."""
        mean, square = self.sums / self.count
        std = (square - mean**2).clamp(min=0).sqrt().clamp(min=1e-6)
        return tuple(values.float().view(1, -1, 1, 1) for values in (mean, std))


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def initialize(layer: nn.Module) -> None:
    """He's initialisation: with torch's own, signals fade on their way and the first epochs are lost."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def standardized(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] RGB -> the mean and deviation of ImageNet."""
    return transforms.normalize(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def read_tensors(path: Path, setting: str, remedy: str) -> dict[str, Any]:
    """A file of tensors and plain values. UserError naming `setting` if it is missing or something else."""
    try:
        content = load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{setting}={path}: no such file; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{setting}={path} cannot be read ({error}); {remedy}") from None
    if "teacher" not in content:
        raise UserError(f"{setting}={path} holds no teacher; {remedy}")
    return content
