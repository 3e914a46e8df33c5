"""A convolutional autoencoder on pixels, the weak floor that every other detector has to leave behind."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from defects.config import Config, Section, validate
from defects.config_data import Count
from defects.models.anomaly import AnomalyDetector, Smooth
from defects.models.base import Batch
from defects.models.parts.losses import check_window, ssim

STRIDE = 8  # of the three poolings together


class ConvAEOptions(Section):
    width: Count = 64  # channels of the first convolution; the others have two and four times as many
    error: Literal["l2", "ssim"] = "ssim"  # learnt from and scored by
    ssim_window: Count = 11  # pixels
    smoothing: Annotated[float, Field(gt=0)] = 4.0  # sigma of the map, in pixels


class ConvAE(AnomalyDetector):
    """Restores normal images; what it cannot restore is new.

    The map is the error of each pixel, smoothed: the squared difference, mean of the channels, or one minus
    the structural similarity. The latter is the better one in Bergmann et al. 2018 (arXiv 1807.02011), and
    on photographs of varying exposure. The score is the map's maximum. Images of any size are filled up to a
    multiple of 8 pixels by repeating the border, and the restored ones are cropped back.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.options = options = validate(ConvAEOptions, config.model.options, "model.options")
        if options.error == "ssim":
            check_window(options.ssim_window, config.seen_size)
        narrow, middle, wide = options.width, 2 * options.width, 4 * options.width
        pool, up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.encoder = nn.Sequential(
            *(*_conv(3, narrow), pool, *_conv(narrow, middle), pool, *_conv(middle, wide), pool)
        )
        self.decoder = nn.Sequential(
            *(*_conv(wide, wide), up, *_conv(wide, middle), up, *_conv(middle, narrow), up),
            *(nn.Conv2d(narrow, 3, 3, padding=1), nn.Sigmoid()),
        )
        self.smooth = Smooth(options.smoothing)

    def restore(self, images: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of `images`, [B, 3, H, W] both, in [0, 1]."""
        height, width = images.shape[2:]
        padded = functional.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return self.decoder(self.encoder(padded))[..., :height, :width].float()

    def training_loss(self, batch: Batch) -> Batch:
        loss = self._errors(batch["image"]).mean()
        return {"loss": loss, self.options.error: loss.detach()}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.smooth(self._errors(images))
        return maps.amax((2, 3)), maps

    def _errors(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W], before smoothing."""
        restored = self.restore(images)
        if self.options.error == "ssim":
            errors = 1 - ssim(images, restored, self.options.ssim_window)
        else:
            errors = (images - restored).square()
        return errors.mean(1, keepdim=True)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]


DETECTOR = ConvAE
