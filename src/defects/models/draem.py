"""DRAEM: what one network cannot restore, a second one learns to see (Zavrtanik et al., ICCV 2021)."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import nn
from torch.nn import functional

from defects.config_schema import Count
from defects.data.datasets import as_input
from defects.data.transforms import rotate_flip
from defects.messages import UserError
from defects.models.base import AnomalyDetector, Batch, Batches, pad_to_multiple
from defects.models.inside import clear_outside, mean_inside, split_inside
from defects.models.losses import focal, ssim
from defects.models.synthetic_anomalies import FolderTextures, TextureSource, draw_texture, paste_anomaly

ANOMALOUS = 0.5  # share of the normal images that get a synthetic anomaly
ROTATED = 0.3  # share of the normal images that are rotated by up to 90 degrees, as in the published code
DRAEM_GAMMA = 2.0  # of the focal loss
UNET_STRIDE_PIXELS = 32  # height and width of what the networks see are multiples of it


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, to have a middle pixel")
    return value


OddWindow = Annotated[int, Field(ge=1), AfterValidator(_check_odd)]  # pixels


class Samples(NamedTuple):
    """What a training step sees; images are float32 [B, 3, H, W] in [0, 1]."""

    clean: torch.Tensor
    mixed: torch.Tensor  # clean, or clean with an anomaly in it
    mask: torch.Tensor  # float32 [B, 1, H, W], 1: anomaly
    restorable: torch.Tensor  # bool [B, 1, H, W], False where the clean image is not known
    weight: torch.Tensor  # float32 [B], 0 where the mask is not known
    inside: torch.Tensor | None  # bool [B, 1, H, W]


class Draem(AnomalyDetector):
    """The raw score is the logit of the largest mean anomaly probability over squares of `score_window`.

    The paper scores by that mean itself; its logit ranks alike, but does not tie where probabilities round
    to 1. Beyond the border they count as 0, as published. The map holds the anomaly probabilities of single
    pixels, unsmoothed.

    As published, a share of the normal images is rotated: by any angle up to 90 degrees where `symmetries` is
    rotations, by a quarter turn where it is dihedral, else not at all. The others are learnt upright, as they
    are scored.
    Under the mask of a real defect nothing is known that the reconstruction could be compared with, so it is
    not; defects without a mask are left out. Sides that are no multiples of 32 are filled up by repeating the
    border, and cropped back.
    """

    def __init__(
        self,
        symmetries: str,
        expected_fpr: float,
        window: tuple[int, int] | None,
        *,
        width_reconstructive: Count = 128,  # channels of the first block
        width_discriminative: Count = 64,
        ssim_window: OddWindow = 11,
        score_window: OddWindow = 21,  # the score is the largest mean over such a square
        textures: Path | None = None,  # folder of texture images, in the paper those of DTD; None: drawn ones
        real_defects: bool = False,  # learn from defects with a mask too
        samples: Annotated[int, Field(ge=0)] = 8,  # training samples to show
    ):
        super().__init__(expected_fpr, window)
        self.symmetries = symmetries
        self.ssim_window = ssim_window
        self.score_window = score_window
        self.textures = textures
        self.samples = samples
        if real_defects:
            self.learns_from = "both"
            # Defects are oversampled in rotations, so normal images must have the same ones, or rotation
            # would tell the classes apart.
            self.learns_upright = False
            self.uses_masks = True
        self.reconstructive = Reconstructive(width_reconstructive)
        self.discriminative = Discriminative(width_discriminative)
        self.apply(_initialize_normal)

    def outside_images(self) -> dict[str, Path]:
        return {} if self.textures is None else {"model.options.textures": self.textures}

    @cached_property
    def texture_source(self) -> TextureSource:
        """Read when training starts: a trained detector scores where the textures are not."""
        return draw_texture if self.textures is None else FolderTextures(self.textures)

    def prepare(self, batches: Batches) -> None:
        """Raises UserError for unusable textures, and if real defects are wanted and none has a mask."""
        _ = self.texture_source
        if not self.uses_masks:
            return
        if not any((batch["label"] * batch["masked"]).any() for batch in batches):
            raise UserError(
                "model.options.real_defects=true: no defect to learn from has a mask; add masks, or set it "
                "to false"
            )

    def training_loss(self, batch: Batch) -> Batch:
        samples = self.synthesise(batch)
        reconstruction, logits = self._run_networks(samples.mixed)
        reconstruction = reconstruction.float()
        logits = logits.float()
        # A pixel compared with itself costs nothing, in the windows of its neighbours neither.
        target = torch.where(samples.restorable, samples.clean, reconstruction.detach())
        costs = focal(logits, samples.mask, DRAEM_GAMMA)
        if samples.inside is None:
            per_image = costs.flatten(1).mean(dim=1)
        else:
            shares = samples.inside.flatten(1).float().mean(dim=1).clamp(min=1e-6)
            per_image = clear_outside(costs, samples.inside, 0.0).flatten(1).mean(dim=1) / shares
        losses = {
            "l2": mean_inside((reconstruction - target).square(), samples.inside),
            "ssim": mean_inside(1 - ssim(reconstruction, target, self.ssim_window), samples.inside),
            "focal": (per_image * samples.weight).mean(),
        }
        return losses | {"loss": sum(losses.values())}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        colours, inside = split_inside(images)
        logits = self._run_networks(colours)[1].float()
        return self.score(logits, inside), logits.softmax(dim=1)[:, 1:]

    def score(self, logits: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """[B, 2, H, W], of normal and anomalous -> [B, 1]. What is not `inside` counts as the border does."""
        margin = [self.score_window // 2] * 4
        differences = clear_outside(logits[:, 1:] - logits[:, :1], inside, -torch.inf)
        anomalous = functional.pad(differences, margin, value=-torch.inf)
        # One minus a probability near 1 has no digits left; its complement has them all.
        probability = _box_mean(anomalous.sigmoid(), self.score_window).clamp(min=1e-37)
        complement = _box_mean((-anomalous).sigmoid(), self.score_window).clamp(min=1e-37)
        return (probability.log() - complement.log()).amax(dim=(2, 3))

    def training_samples(self, batch: Batch) -> np.ndarray | None:
        """uint8 [n H, 3 W, 3]: the first `samples` images of a batch, each with a new mask and the
        anomaly it makes, as in training. Draws from numpy's global generator.
        """
        if not self.samples:
            return None
        rows = []
        for image in _pixels(split_inside(batch["image"])[0])[: self.samples]:
            mixed, mask = paste_anomaly(image, self.texture_source)
            mask_over_image = np.where(mask[..., None], np.uint8(255), image // 4)
            rows.append(np.hstack([image, mask_over_image, mixed]))
        return np.vstack(rows)

    def _run_networks(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] -> reconstruction [B, 3, H, W], logits [B, 2, H, W]."""
        height, width = images.shape[2:]
        images = pad_to_multiple(images, UNET_STRIDE_PIXELS)
        reconstruction = self.reconstructive(images)
        logits = self.discriminative(torch.cat([reconstruction, images], dim=1))
        return reconstruction[..., :height, :width], logits[..., :height, :width]

    def synthesise(self, batch: Batch) -> Samples:
        """What a training step sees of a batch; defects are left as they are."""
        device = batch["image"].device
        colours, inside = split_inside(batch["image"])
        examples = []
        labels = batch["label"][:, 0].tolist()
        for place, (image, label) in enumerate(zip(_pixels(colours), labels, strict=True)):
            judged = np.ones((*image.shape[:2], 1), np.uint8)
            if inside is not None:
                judged = inside[place, 0].cpu().numpy().astype(np.uint8)[..., None]
            without = np.zeros(image.shape[:2], bool)
            is_defect = label == 1
            examples.append(
                (image, image, without, judged) if is_defect else self._add_anomaly(image, judged)
            )
        clean, mixed, mask, judged = (
            torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*examples, strict=True)
        )
        mask = mask[:, None].float()
        judged = None if inside is None else judged.permute(0, 3, 1, 2) > 0
        restorable = torch.ones_like(mask, dtype=torch.bool)
        weight = torch.ones(len(mask), device=device)
        if self.uses_masks:
            has_mask = batch["masked"][:, 0]
            mask = torch.maximum(mask, batch["mask"])
            restorable = (batch["mask"] == 0) & (has_mask.view(-1, 1, 1, 1) > 0)
            weight = has_mask
        return Samples(as_input(clean), as_input(mixed), mask, restorable, weight, judged)

    def _add_anomaly(
        self, image: np.ndarray, inside: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and what of it is judged, uint8 [H, W, 1] -> the image, with an anomaly or not,
        the mask of the anomaly and what is judged, all of them rotated or not."""
        if np.random.rand() < ROTATED:
            angle = self._draw_angle(image.shape[:2])
            image = rotate_flip(image, angle, "none")
            inside = rotate_flip(inside, angle, "none")
        if np.random.rand() >= ANOMALOUS:
            return image, image, np.zeros(image.shape[:2], bool), inside
        mixed, mask = paste_anomaly(image, self.texture_source)
        return image, np.where(inside > 0, mixed, image), mask & (inside[..., 0] > 0), inside

    def _draw_angle(self, size: tuple[int, int]) -> float:
        """Degrees by which an image of `size` is rotated."""
        if self.symmetries == "rotations":
            return np.random.uniform(-90, 90)
        if self.symmetries == "dihedral":
            # A quarter turn of a strip does not fit into its frame.
            return np.random.choice([-90.0, 90.0]) if size[0] == size[1] else 180.0
        return 0.0


class Reconstructive(nn.Module):
    """Images -> images [B, 3, H, W] through a sixteenth of the size, without skips; H, W multiples of 16."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        layers = [_double_convolution(3, width, width)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.MaxPool2d(2), _double_convolution(before, after, after)]
        for before, after in ((8, 4), (4, 2), (2, 1), (1, 1)):
            wide = before * width
            layers += [_upsample(wide, wide), _double_convolution(wide, wide, after * width)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Discriminative(nn.Module):
    """U-Net with skips: reconstruction and image [B, 6, H, W] -> logits of normal and anomalous [B, 2, H, W].

    H and W are multiples of 32.
    """

    def __init__(self, width: int):
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.down = nn.ModuleList(
            _double_convolution(before, after, after)
            for before, after in zip([6, *widths], widths, strict=False)
        )
        # What comes up is thinned to the width of the next finer level, but to no less than the first's.
        outputs = [widths[4], *widths[2::-1], widths[0]]
        inputs = [widths[5], *outputs]
        self.grow = nn.ModuleList(_upsample(a, b) for a, b in zip(inputs, outputs, strict=False))
        skips = zip(outputs, widths[4::-1], strict=True)
        self.up = nn.ModuleList(_double_convolution(coming + skip, coming, coming) for coming, skip in skips)
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = [self.down[0](images)]
        for block in self.down[1:]:
            levels.append(block(functional.max_pool2d(levels[-1], 2)))
        maps = levels.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            maps = block(torch.cat([grow(maps), levels.pop()], dim=1))
        return self.head(maps)


def _convolution_layer(before: int, after: int) -> list[nn.Module]:
    # Batch normalisation takes away any bias.
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def _double_convolution(before: int, between: int, after: int) -> nn.Sequential:
    return nn.Sequential(*_convolution_layer(before, between), *_convolution_layer(between, after))


def _upsample(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=2), *_convolution_layer(before, after))


def _initialize_normal(module: nn.Module) -> None:
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
