"""DRAEM: what one network cannot restore, a second one learns to see (Zavrtanik et al., ICCV 2021)."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn
from torch.nn import functional

from defects.config import Config, Section, resolve, validate
from defects.config_data import Count
from defects.data.datasets import as_input
from defects.data.external import refuse_external
from defects.data.transforms import rotate_flip
from defects.errors import UserError
from defects.models.anomaly import AnomalyDetector
from defects.models.base import Batch, Batches
from defects.models.parts.anomalies import paste_anomaly
from defects.models.parts.losses import focal, ssim
from defects.models.parts.textures import FolderTextures, TextureSource, drawn_texture

ANOMALOUS = 0.5  # share of the normal images that get a synthetic anomaly
TURNED = 0.3  # share of the normal images that are turned by up to 90 degrees, as in the published code
GAMMA = 2.0  # of the focal loss
STRIDE = 32  # pixels; the sides of what the networks see are multiples of it


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, to have a middle pixel")
    return value


Window = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class DraemOptions(Section):
    width_reconstructive: Count = 128  # channels of the first block
    width_discriminative: Count = 64
    ssim_window: Window = 11  # pixels
    score_window: Window = 21  # pixels; the score is the largest mean over such a square
    textures: Path | None = None  # folder of texture images, in the paper those of DTD; None: drawn ones
    texture_classes: list[str] = []  # its sub-folders to use; none named: all
    real_defects: bool = False  # learn from defects with a mask too
    samples: Annotated[int, Field(ge=0)] = 8  # training samples to show

    @model_validator(mode="after")
    def _folder_needed(self) -> "DraemOptions":
        if self.texture_classes and self.textures is None:
            raise ValueError("texture_classes are sub-folders of textures: name that folder too")
        return self


class Samples(NamedTuple):
    """What a training step sees; images are float32 [B, 3, H, W] in [0, 1]."""

    clean: torch.Tensor
    mixed: torch.Tensor  # clean, or clean with an anomaly in it
    mask: torch.Tensor  # float32 [B, 1, H, W], 1: anomaly
    restorable: torch.Tensor  # bool [B, 1, H, W], False where the clean image is not known
    weight: torch.Tensor  # float32 [B], 0 where the mask is not known


class Draem(AnomalyDetector):
    """The raw score is the logit of the largest mean anomaly probability over squares of `score_window`.

    The paper scores by that mean itself; its logit ranks alike, but does not tie where probabilities round
    to 1. Beyond the border they count as 0, as published. The map holds the anomaly probabilities of single
    pixels, unsmoothed.

    As published, a share of the normal images is rotated: by any angle up to 90 degrees where
    `data.symmetries` is rotations, by a quarter turn where it is dihedral, else not at all. The others are
    learnt upright, as they are scored.
    Under the mask of a real defect nothing is known that the reconstruction could be held to, so it is not;
    defects without a mask are left out. Sides that are no multiples of 32 are filled up by repeating the
    border, and cut back.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.config = config
        self.options = options = validate(DraemOptions, config.model.options, "model.options")
        if options.real_defects:
            self.learns_from = "both"
            # Defects are oversampled in rotations, so normal images must have the same ones, or rotation
            # would tell the classes apart.
            self.learns_upright = False
            self.uses_masks = True
        self.reconstructive = Reconstructive(options.width_reconstructive)
        self.discriminative = Discriminative(options.width_discriminative)
        self.apply(_initialize)

    @cached_property
    def source(self) -> TextureSource:
        """Read when training starts: a trained detector scores where the textures are not."""
        if self.options.textures is None:
            return drawn_texture
        refuse_external(self.config, "model.options.textures", self.options.textures)
        return FolderTextures(resolve(self.options.textures), self.options.texture_classes)

    def prepare(self, batches: Batches) -> None:
        """Raises UserError for unusable textures, and if real defects are wanted and none has a mask."""
        _ = self.source
        if not self.options.real_defects:
            return
        if not any((batch["label"] * batch["masked"]).any() for batch in batches):
            raise UserError(
                "model.options.real_defects=true: no defect to learn from has a mask; add masks, or set it "
                "to false"
            )

    def training_loss(self, batch: Batch) -> Batch:
        samples = self.synthesise(batch)
        reconstruction, logits = (output.float() for output in self._networks(samples.mixed))
        # A pixel compared with itself costs nothing, in the windows of its neighbours neither.
        target = torch.where(samples.restorable, samples.clean, reconstruction.detach())
        window = self.options.ssim_window
        per_image = focal(logits, samples.mask, GAMMA).flatten(1).mean(dim=1)
        losses = {
            "l2": functional.mse_loss(reconstruction, target),
            "ssim": 1 - ssim(reconstruction, target, window).mean(),
            "focal": (per_image * samples.weight).mean(),
        }
        return losses | {"loss": sum(losses.values())}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._networks(images)[1].float()
        return self.score(logits), logits.softmax(dim=1)[:, 1:]

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, 2, H, W], of normal and anomalous -> [B, 1]."""
        window = self.options.score_window
        margin = [window // 2] * 4
        anomalous = functional.pad(logits[:, 1:] - logits[:, :1], margin, value=-torch.inf)
        # One minus a probability near 1 has no digits left; its complement has them all.
        p, q = (_box_mean(side.sigmoid(), window).clamp(min=1e-37) for side in (anomalous, -anomalous))
        return (p.log() - q.log()).amax(dim=(2, 3))

    def training_samples(self, batch: Batch) -> np.ndarray | None:
        """uint8 [n H, 3 W, 3]: the first `options.samples` images of a batch, each with a new mask and the
        anomaly it makes, as in training. Draws from numpy's global generator.
        """
        if not self.options.samples:
            return None
        rows = []
        for image in _pixels(batch["image"])[: self.options.samples]:
            mixed, mask = paste_anomaly(image, self.source)
            rows.append(np.hstack([image, np.where(mask[..., None], np.uint8(255), image // 4), mixed]))
        return np.vstack(rows)

    def _networks(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] -> reconstruction [B, 3, H, W], logits [B, 2, H, W]."""
        height, width = images.shape[2:]
        images = functional.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        reconstruction = self.reconstructive(images)
        logits = self.discriminative(torch.cat([reconstruction, images], dim=1))
        return reconstruction[..., :height, :width], logits[..., :height, :width]

    def synthesise(self, batch: Batch) -> Samples:
        device, real = batch["image"].device, (batch["label"][:, 0] == 1).tolist()
        made = [
            (image, image, np.zeros(image.shape[:2], bool)) if defect else self._synthetic(image)
            for image, defect in zip(_pixels(batch["image"]), real, strict=True)
        ]
        clean, mixed, mask = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*made, strict=True))
        mask, weight = mask[:, None].float(), batch["weight"][:, 0]
        restorable = torch.ones_like(mask, dtype=torch.bool)
        if self.options.real_defects:
            mask, known = torch.maximum(mask, batch["mask"]), batch["masked"][:, 0]
            restorable = (batch["mask"] == 0) & (known.view(-1, 1, 1, 1) > 0)
            weight = weight * known
        return Samples(as_input(clean), as_input(mixed), mask, restorable, weight)

    def _synthetic(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] -> the same turned or not, with an anomaly or not, the mask of the anomaly."""
        if np.random.rand() < TURNED:
            image = self._turned(image)
        if np.random.rand() < ANOMALOUS:
            return image, *paste_anomaly(image, self.source)
        return image, image, np.zeros(image.shape[:2], bool)

    def _turned(self, image: np.ndarray) -> np.ndarray:
        symmetries, (height, width) = self.config.data.symmetries, image.shape[:2]
        if symmetries == "rotations":
            return rotate_flip(image, np.random.uniform(-90, 90), "none")
        if symmetries == "dihedral":
            # A quarter turn of a strip does not fit into its frame.
            return rotate_flip(image, np.random.choice([-90.0, 90.0]) if height == width else 180.0, "none")
        return image


class Reconstructive(nn.Module):
    """[B, 3, H, W] -> [B, 3, H, W] through a sixteenth of the size, without skips; sides multiples of 16."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        layers = [_block(3, width, width)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.MaxPool2d(2), _block(before, after, after)]
        for before, after in ((8, 4), (4, 2), (2, 1), (1, 1)):
            before, after = before * width, after * width
            layers += [_grow(before, before), _block(before, before, after)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Discriminative(nn.Module):
    """U-Net with skips: reconstruction and image [B, 6, H, W] -> logits of normal and anomalous [B, 2, H, W].

    Sides are multiples of 32.
    """

    def __init__(self, width: int):
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.down = nn.ModuleList(
            _block(before, after, after) for before, after in zip([6, *widths], widths, strict=False)
        )
        # What comes up is thinned to the width of the next finer level, but to no less than the first's.
        outputs = [widths[4], *widths[2::-1], widths[0]]
        inputs = [widths[5], *outputs]
        self.grow = nn.ModuleList(_grow(a, b) for a, b in zip(inputs, outputs, strict=False))
        skips = zip(outputs, widths[4::-1], strict=True)
        self.up = nn.ModuleList(_block(coming + skip, coming, coming) for coming, skip in skips)
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = [self.down[0](images)]
        for block in self.down[1:]:
            levels.append(block(functional.max_pool2d(levels[-1], 2)))
        maps = levels.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            maps = block(torch.cat([grow(maps), levels.pop()], dim=1))
        return self.head(maps)


def _layer(before: int, after: int) -> list[nn.Module]:
    # Batch normalisation takes away any bias.
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def _block(before: int, between: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_layer(before, between), *_layer(between, after))


def _grow(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=2), *_layer(before, after))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def _box_mean(maps: torch.Tensor, window: int) -> torch.Tensor:
    return functional.avg_pool2d(functional.avg_pool2d(maps, (window, 1), 1), (1, window), 1)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


DETECTOR = Draem
