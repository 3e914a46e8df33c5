"""A convolutional autoencoder on pixels, the weak floor that every other detector has to leave behind."""

from typing import Literal

import torch
from torch import nn

from defects.config_schema import Count, Positive
from defects.models.base import AnomalyDetector, Batch, pad_to_multiple
from defects.models.inside import average_inside, clear_outside, mean_inside, split_inside
from defects.models.losses import check_window, ssim
from defects.models.statistics import GaussianSmoothing

POOLING_PIXELS = 8  # of the three poolings together


class ConvAE(AnomalyDetector):
    """Restores normal images; what it cannot restore is new.

    The map is the error of each pixel, smoothed: the squared difference, mean of the channels, or one minus
    the structural similarity. The latter is the better one in Bergmann et al. 2018 (arXiv 1807.02011), and
    on photographs of varying exposure. The score is the map's maximum. Images of any size are filled up to a
    multiple of 8 pixels by repeating the border, and the restored ones are cropped back.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        expected_fpr: float,
        window: tuple[int, int] | None,
        *,
        width: Count = 64,  # channels of the first convolution; the others have two and four times as many
        error: Literal["l2", "ssim"] = "ssim",  # learnt from and scored by
        ssim_window: Count = 11,  # pixels
        smoothing: Positive = 4.0,  # sigma of the map, in pixels
    ):
        super().__init__(expected_fpr, window)
        self.error = error
        self.ssim_window = ssim_window
        if error == "ssim":
            check_window(ssim_window, image_size)
        pool = nn.MaxPool2d(2)
        upsample = nn.Upsample(scale_factor=2)
        self.encoder = nn.Sequential(
            *_convolution(3, width),
            pool,
            *_convolution(width, 2 * width),
            pool,
            *_convolution(2 * width, 4 * width),
            pool,
        )
        self.decoder = nn.Sequential(
            *_convolution(4 * width, 4 * width),
            upsample,
            *_convolution(4 * width, 2 * width),
            upsample,
            *_convolution(2 * width, width),
            upsample,
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Sigmoid(),
        )
        self.smooth = GaussianSmoothing(smoothing)

    def restore(self, images: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of `images`, [B, 3, H, W] both, in [0, 1]."""
        height, width = images.shape[2:]
        restored = self.decoder(self.encoder(pad_to_multiple(images, POOLING_PIXELS)))
        return restored[..., :height, :width].float()

    def training_loss(self, batch: Batch) -> Batch:
        loss = mean_inside(*self._errors(batch["image"]))
        return {"loss": loss, self.error: loss.detach()}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        errors, inside = self._errors(images)
        maps = clear_outside(average_inside(errors, inside, self.smooth), inside, 0.0)
        return maps.amax((2, 3)), maps

    def _errors(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 1, H, W], before smoothing, and which of them are inside."""
        colours, inside = split_inside(images)
        restored = self.restore(colours)
        if self.error == "ssim":
            errors = 1 - ssim(colours, restored, self.ssim_window)
        else:
            errors = (colours - restored).square()
        return errors.mean(1, keepdim=True), inside


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]


DETECTOR = ConvAE
