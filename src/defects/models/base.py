"""The contract that every detector keeps, supervised or not."""

from collections.abc import Iterable

import torch
from torch import nn

Batch = dict[str, torch.Tensor]


class Detector(nn.Module):
    """Images in, defect scores out; normalisation, smoothing and score scaling live inside `forward`.

    A batch holds image [B, 3, H, W] float32 in [0, 1], label [B, C] (1: defective), weight [B, C].
    C is 1 for defective or not, 4 for Severstal.
    """

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Once, before the epochs, over the images learnt from, each once: PCA, statistics, banks."""

    def training_loss(self, batch: Batch) -> Batch:
        """Named scalars, `loss` among them; optionally `score` [B, C], detached, for training metrics."""
        raise NotImplementedError

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Once, after the epochs, in evaluation mode, over the inner hold-out: quantiles, score scale."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 3, H, W] -> score [B, C] (raw, higher = more defective), map [B, C, h, w] or None."""
        raise NotImplementedError

    def probability(self, score: torch.Tensor) -> torch.Tensor:
        """Raw score -> [0, 1], strictly increasing; the logistic function unless calibrated otherwise."""
        return torch.sigmoid(score)
