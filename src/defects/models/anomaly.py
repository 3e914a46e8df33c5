"""What detectors that learn from normal images alone have in common: how their scores are calibrated."""

import torch
from torch import nn
from torch.nn import functional

from defects.config import Config
from defects.data.windows import windows
from defects.models.base import Batches, Detector


class AnomalyDetector(Detector):
    """Learns from normal images; its score is calibrated on held-out normal ones.

    `cut` is the score that a share `threshold.fpr` of the held-out normal images reaches, `spread` the
    distance from their median to it. Both are exact empirical quantiles.
    """

    learns_from = "normal"
    # Rotated normal images would be learnt as normal, at the expense of the upright ones that are scored.
    learns_upright = True
    needs_holdout = True

    def __init__(self, config: Config):
        super().__init__()
        self.expected_fpr, self.window = config.threshold.fpr, config.infer.window
        self.register_buffer("cut", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def calibrate(self, batches: Batches) -> None:
        scores = [[self(part)[0] for part in self.parts(batch["image"])] for batch in batches]
        self.set_scale(torch.cat([torch.stack(each).amax(0).flatten().cpu() for each in scores]))

    def parts(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The windows in which images [B, 3, H, W] are scored: their highest score is that of the image."""
        return [images[..., rows, columns] for rows, columns in windows(images.shape[2:], self.window)]

    def set_scale(self, scores: torch.Tensor) -> None:
        """`cut` and `spread` from the raw scores [N] of held-out normal images."""
        cut, median = exact_quantile(scores, 1 - self.expected_fpr), exact_quantile(scores, 0.5)
        self.cut.copy_(cut)
        # Never zero: a handful of hold-out images may all score alike.
        self.spread.copy_((cut - median).clamp(min=cut.abs() * 1e-3 + 1e-12))

    def probability(self, score: torch.Tensor) -> torch.Tensor:
        """0.5 at the cut. Linear near it and logarithmic far away, so that no two defects saturate at 1."""
        return torch.sigmoid(torch.asinh((score - self.cut) / self.spread))


def exact_quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The smallest of `values` [N] that at least a share q of them does not exceed.

    torch.quantile refuses more than 2^24 values, and interpolates.
    """
    rank = min(max(1, -int(-q * len(values) // 1)), len(values))
    return values.kthvalue(rank).values


class Smooth(nn.Module):
    """Gaussian smoothing of maps [B, C, h, w] with repeated borders; sigma in pixels of the map."""

    def __init__(self, sigma: float):
        super().__init__()
        radius = max(1, round(4 * sigma))
        steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        channels, radius = maps.shape[1], len(self.kernel) // 2
        for shape, pad in (((1, 1, 1, -1), (radius, radius, 0, 0)), ((1, 1, -1, 1), (0, 0, radius, radius))):
            kernel = self.kernel.view(shape).expand(channels, -1, -1, -1)
            maps = functional.conv2d(functional.pad(maps, pad, mode="replicate"), kernel, groups=channels)
        return maps
