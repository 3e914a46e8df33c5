"""DFR: deep feature reconstruction. Yang, Shi and Qi 2020 (arXiv 2012.07122)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from defects.config_schema import BackboneConfig, Count
from defects.models.base import AnomalyDetector, Batch, Batches
from defects.models.features import Features
from defects.models.inside import cells_inside, clear_outside, mean_inside, select_inside, split_inside
from defects.models.statistics import (
    StreamingCovariance,
    exact_quantile,
    explained_components,
    raise_small_deviations,
)


class DFR(AnomalyDetector):
    """An autoencoder of 1x1 convolutions on features of many layers; what it cannot restore is new.

    The map is the channel-mean squared error of each cell, the score its maximum. The width of the latent
    vector is the number of principal components that explain `variance` on all training images; the
    published code looks at the first ten, for want of memory.

    Two thresholds are kept, for the same expected rate and on held-out normal images (the published one is
    swept in 100 steps on the training images, which the autoencoder knows): `image_cut` is exceeded by a
    share threshold.fpr of the images, `pixel_cut` by that share of all cells. As a verdict on images, any
    cell above `pixel_cut`, the latter takes nearly every image for defective unless the rate is tiny.
    """

    def __init__(
        self,
        backbone: BackboneConfig | None,
        image_size: tuple[int, int],
        expected_fpr: float,
        window: tuple[int, int] | None,
        *,
        layers: list[str] | None = None,  # None: those of strides 8 and 16; published: the twelve of dfr.yaml
        cell: Count = 4,  # pixels of the image per cell of the common grid
        variance: Annotated[float, Field(gt=0, lt=1)] = 0.9,  # explained by the latent vector
        standardize: bool = False,  # channels to mean 0 and deviation 1 first; published: as they are
        cut: Literal["image", "pixel"] = "image",  # what threshold.fpr is a share of; published: pixel
    ):
        super().__init__(expected_fpr, window)
        self.cell = cell
        self.variance = variance
        self.standardize = standardize
        self.calibrated_on = cut
        self.features = Features(backbone, layers, image_size)
        self.channels = sum(self.features.channels)
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("image_cut", torch.zeros(()))
        self.register_buffer("pixel_cut", torch.zeros(()))
        self.register_buffer("std", torch.ones(1, self.channels, 1, 1))
        self._build_autoencoder(latent=1)

    def prepare(self, batches: Batches) -> None:
        stream = StreamingCovariance(self.channels, self.mean.device)
        for batch in batches:
            images, inside = split_inside(batch["image"])
            grid = self._common_grid(images)
            cells = cells_inside(inside, grid.shape[2:])
            for place, maps in enumerate(grid):
                stream.update(select_inside(maps, None if cells is None else cells[place]))
        covariance = stream.covariance
        if self.standardize:
            std = raise_small_deviations(covariance.diagonal().sqrt())
            covariance = covariance / std.outer(std)
            self.mean.copy_(stream.mean.float().view_as(self.mean))
            self.std.copy_(std.float().view_as(self.std))
        self._build_autoencoder(explained_components(covariance, self.variance))

    def training_loss(self, batch: Batch) -> Batch:
        loss = mean_inside(*self._errors(batch["image"]))
        return {"loss": loss, "mse": loss.detach()}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = clear_outside(*self._errors(images), 0.0)
        return maps.amax((2, 3)), maps

    def calibrate(self, batches: Batches) -> None:
        highest = []
        cells = []
        for batch in batches:
            in_windows = [self._errors(window) for window in self.split_windows(batch["image"])]
            of_windows = [clear_outside(*errors, 0.0).amax((1, 2, 3)) for errors in in_windows]
            highest.append(torch.stack(of_windows).amax(0).cpu())
            for errors, inside in in_windows:
                cells.append((errors.flatten() if inside is None else errors[inside]).cpu())
        self.set_scale(torch.cat(highest))
        self.image_cut.copy_(self.cut)
        self.pixel_cut.copy_(exact_quantile(torch.cat(cells), 1 - self.expected_fpr))
        if self.calibrated_on == "pixel":
            self.cut.copy_(self.pixel_cut)

    def take_sizes(self, state: dict[str, torch.Tensor]) -> None:
        self._build_autoencoder(state["decoder.0.weight"].shape[1])
        super().take_sizes(state)

    def _build_autoencoder(self, latent: int) -> None:
        """The autoencoder C, (C + 2d) / 2, 2d, d and back, for a latent width of d."""
        middle = 2 * latent
        wide = (self.channels + 2 * latent) // 2
        self.encoder = nn.Sequential(
            *_pixel_block(self.channels, wide), *_pixel_block(wide, middle), nn.Conv2d(middle, latent, 1)
        )
        self.decoder = nn.Sequential(
            *_pixel_block(latent, middle), *_pixel_block(middle, wide), nn.Conv2d(wide, self.channels, 1)
        )
        # The rest may have been moved, and put into evaluation mode, before this is built anew.
        self.to(self.mean.device).train(self.training)

    def _common_grid(self, images: torch.Tensor) -> torch.Tensor:
        """All layers on one grid [B, C, H / cell, W / cell].

        The published code brings every layer to the image's size, bilinearly, and averages squares of 4x4
        pixels. Averaging layers that are finer than the grid and interpolating coarser ones gives the same,
        up to a little blur, layer by layer in a sixteenth of the memory. Corners are not aligned, since
        averages are not either.
        """
        grid = [max(1, round(side / self.cell)) for side in images.shape[2:]]
        layers = []
        for maps in self.features(images):
            maps = maps.float()
            height, width = maps.shape[2:]
            if height >= grid[0] and width >= grid[1]:
                layers.append(functional.adaptive_avg_pool2d(maps, grid))
            else:
                layers.append(functional.interpolate(maps, grid, mode="bilinear"))
        return torch.cat(layers, 1)

    def _errors(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 1, h, w], and which of them are inside."""
        colours, inside = split_inside(images)
        features = (self._common_grid(colours) - self.mean) / self.std
        restored = self.decoder(self.encoder(features))
        errors = (restored.float() - features).square().mean(1, keepdim=True)
        return errors, cells_inside(inside, errors.shape[2:])


def _pixel_block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


DETECTOR = DFR
