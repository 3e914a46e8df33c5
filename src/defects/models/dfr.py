"""DFR: deep feature reconstruction. Yang, Shi and Qi 2020 (arXiv 2012.07122)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from defects.config import Config, Section, validate
from defects.config_data import Count
from defects.models.anomaly import AnomalyDetector, exact_quantile
from defects.models.base import Batch, Batches
from defects.models.parts.backbone import Features
from defects.models.parts.pca import StreamingCovariance, explained_components


class DFROptions(Section):
    layers: list[str] | None = None  # None: those of strides 8 and 16; published: the twelve of dfr.yaml
    cell: Count = 4  # pixels of the image per cell of the common grid
    variance: Annotated[float, Field(gt=0, lt=1)] = 0.9  # explained by the latent vector
    standardize: bool = False  # channels to mean 0 and deviation 1 first; published: as they are
    cut: Literal["image", "pixel"] = "image"  # what threshold.fpr is a share of; published: pixel


class DFR(AnomalyDetector):
    """An autoencoder of 1x1 convolutions on features of many layers; what it cannot restore is new.

    The map is the channel-mean squared error of each cell, the score its maximum. The width of the latent
    vector is the number of principal components that explain `variance` on all training images; the
    published code looks at the first ten, for want of memory.

    Two thresholds are kept, for the same expected rate and on held-out normal images (the published one is
    swept in 100 steps on the training images, which the autoencoder knows): `image_cut` is exceeded by a
    share threshold.fpr of the images, `pixel_cut` by that share of all cells. As a verdict on images, any
    cell above `pixel_cut`, the latter calls nearly every image defective unless the rate is tiny.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.options = validate(DFROptions, config.model.options, "model.options")
        self.features = Features(config.model.backbone, self.options.layers, config.seen_size)
        self.channels = sum(self.features.channels)
        for name, size in (("mean", (1, self.channels, 1, 1)), ("image_cut", ()), ("pixel_cut", ())):
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("std", torch.ones(1, self.channels, 1, 1))
        self._build(latent=1)

    def prepare(self, batches: Batches) -> None:
        stream = StreamingCovariance(self.channels, self.mean.device)
        for batch in batches:
            for grid in self._pooled(batch["image"]):
                stream.update(grid.flatten(1).T)
        covariance = stream.covariance
        if self.options.standardize:
            covariance = self._standardize(stream.mean, covariance)
        self._build(explained_components(covariance, self.options.variance))

    def training_loss(self, batch: Batch) -> Batch:
        loss = self._errors(batch["image"]).mean()
        return {"loss": loss, "mse": loss.detach()}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self._errors(images)
        return maps.amax((2, 3)), maps

    def calibrate(self, batches: Batches) -> None:
        maps = [
            torch.stack([self(part)[1].cpu() for part in self.parts(batch["image"])], 1) for batch in batches
        ]
        maps = torch.cat(maps)  # [N, windows, 1, h, w]
        self.set_scale(maps.amax((1, 2, 3, 4)))
        self.image_cut.copy_(self.cut)
        self.pixel_cut.copy_(exact_quantile(maps.flatten(), 1 - self.expected_fpr))
        if self.options.cut == "pixel":
            self.cut.copy_(self.pixel_cut)

    def take_sizes(self, state: dict[str, torch.Tensor]) -> None:
        self._build(state["decoder.0.weight"].shape[1])
        super().take_sizes(state)

    def _build(self, latent: int) -> None:
        """The autoencoder C, (C + 2d) / 2, 2d, d and back, for a latent width of d."""
        middle, wide = 2 * latent, (self.channels + 2 * latent) // 2
        encoder = [*_block(self.channels, wide), *_block(wide, middle), nn.Conv2d(middle, latent, 1)]
        decoder = [*_block(latent, middle), *_block(middle, wide), nn.Conv2d(wide, self.channels, 1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        # The rest may have been moved, and put into evaluation mode, before this is built anew.
        self.to(self.mean.device).train(self.training)

    def _standardize(self, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """Keep mean and deviation of the channels; the covariance of what is left of them."""
        std = covariance.diagonal().sqrt()
        # A channel that sleeps on these images would shout at the first one that wakes it.
        std = std.clamp(min=0.01 * std.mean().item() + 1e-12)
        self.mean.copy_(mean.float().view_as(self.mean))
        self.std.copy_(std.float().view_as(self.std))
        return covariance / std.outer(std)

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        """All layers on one grid [B, C, H / cell, W / cell].

        The published code brings every layer to the image's size, bilinearly, and averages squares of 4x4
        pixels. Averaging layers that are finer than the grid and interpolating coarser ones gives the same,
        up to a little blur, layer by layer in a sixteenth of the memory. Corners are not aligned, since
        averages are not either.
        """
        grid = [max(1, round(side / self.options.cell)) for side in images.shape[2:]]
        return torch.cat([_resize(maps.float(), grid) for maps in self.features(images)], 1)

    def _errors(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 1, h, w]"""
        features = (self._pooled(images) - self.mean) / self.std
        restored = self.decoder(self.encoder(features))
        return (restored.float() - features).square().mean(1, keepdim=True)


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _resize(maps: torch.Tensor, grid: list[int]) -> torch.Tensor:
    height, width = maps.shape[2:]
    if height >= grid[0] and width >= grid[1]:
        return functional.adaptive_avg_pool2d(maps, grid)
    return functional.interpolate(maps, grid, mode="bilinear")


DETECTOR = DFR
