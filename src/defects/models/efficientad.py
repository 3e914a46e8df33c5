"""EfficientAD: a student and an autoencoder imitate a teacher's patch descriptions of normal images.

Batzner et al. 2023 (arXiv 2303.14535).
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from defects.config import Config, Section, resolve, validate
from defects.config_data import Count, Fraction
from defects.data.datasets import as_input
from defects.data.external import refuse_external
from defects.data.folder_scan import list_images
from defects.data.images import read_image
from defects.errors import UserError
from defects.models.anomaly import AnomalyDetector, exact_quantile
from defects.models.base import Batch, Batches
from defects.models.parts.pdn import (
    FIELD,
    SHAPE,
    STRIDE,
    ChannelMoments,
    PatchDescription,
    Size,
    initialize,
    read_tensors,
    scaled,
    standardized,
)

LOW, HIGH, AT_HIGH = 0.9, 0.995, 0.1  # quantiles of normal maps that become 0 and 0.1 (section 3.4)
DISTILL = "make it with src/distill.py --images FOLDER and the same --config, --detector and --set"

Positive = Annotated[float, Field(gt=0)]


class DistillationOptions(Section):
    """How src/distill.py makes the teacher; the backbone is model.backbone."""

    steps: Count = 60_000
    batch_size: Count = 16
    lr: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    image_size: Annotated[int, Field(ge=FIELD)] = 256  # pixels a side; the backbone sees twice as many
    layers: list[str] | None = None  # of the backbone; None: those of strides 8 and 16
    augment: list[dict[str, Any]] = [{"name": "ToGray", "p": 0.1}]  # albumentations, as in the config
    statistics_images: Count = 10_000  # at most, for the mean and deviation of the features
    save_every: Count = 500  # steps


class EfficientADOptions(Section):
    teacher: Path | None = None  # written by src/distill.py
    size: Size = "small"
    width: Positive = 1.0  # of teacher and student; 1: as published
    channels: Count = 384  # of a description
    autoencoder_width: Positive = 1.0
    latent: Count = 64  # the autoencoder's bottleneck
    hard_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.999
    penalty: Path | None = None  # folder of other images, on which the student must not learn the teacher
    penalty_gray: Fraction = 0.3
    distillation: DistillationOptions = DistillationOptions()


class EfficientAD(AnomalyDetector):
    """The map is the mean of two differences, student to teacher and student to autoencoder, each scaled on
    held-out normal images; the score is the map's maximum.

    As in the paper and unlike the first popular versions: Adam, no padding, quantiles of unseen normal
    images, exact however many values there are. Different from the paper: the maximum is taken before the
    map is brought to the image, and the map's border repeats its last value, since zeros would mean a
    difference that only a tenth of the normal patches reaches. With more than one image in a batch the
    hard values are those of each image: over the whole batch, the hardest image would take them all.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.options = options = validate(EfficientADOptions, config.model.options, "model.options")
        self.size = config.seen_size
        if min(self.size) < FIELD:
            raise UserError(
                f"data.image_size={list(config.data.image_size)}, infer.window={config.infer.window}: "
                f"efficientad needs {FIELD} pixels a side or more"
            )
        if options.penalty is not None:
            refuse_external(config, "model.options.penalty", options.penalty)
        self.teacher = PatchDescription(options.size, options.width, options.channels)
        self.student = PatchDescription(options.size, options.width, 2 * options.channels)
        self.autoencoder = Autoencoder(options, self.size)
        self.register_buffer("mean", torch.zeros(1, options.channels, 1, 1))
        self.register_buffer("std", torch.ones(1, options.channels, 1, 1))
        # [low, high] of the student-teacher map and of the student-autoencoder map.
        self.register_buffer("quantiles", torch.tensor([[0.0, AT_HIGH], [0.0, AT_HIGH]]))
        if options.teacher is not None:
            self.teacher.load_state_dict(_teacher_weights(config, options))
        self.teacher.requires_grad_(False)

    def prepare(self, batches: Batches) -> None:
        if self.options.teacher is None:
            raise UserError(f"model.options.teacher names no file; {DISTILL}")
        if self.others is None:
            print("note: model.options.penalty names no folder, so the student learns without the penalty")
        moments = ChannelMoments(self.options.channels)
        for batch in batches:
            moments.add(self.teacher(batch["image"]))
        for buffer, values in zip((self.mean, self.std), moments.result(), strict=True):
            buffer.copy_(values)

    def training_loss(self, batch: Batch) -> Batch:
        images, channels = batch["image"], self.options.channels
        jittered = jitter(images)
        hard = hard_mean(self._teach(images), self.student(images)[:, :channels], self.options.hard_quantile)
        target = self._teach(jittered)
        rebuilt = self.autoencoder(jittered, target.shape[2:])
        losses = {
            "st": hard + self._penalty(len(images), images.device),
            "ae": functional.mse_loss(rebuilt.float(), target),
            "stae": functional.mse_loss(self.student(jittered)[:, channels:].float(), rebuilt.float()),
        }
        return {"loss": sum(losses.values())} | losses

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.quantiles.view(2, 2, 1, 1, 1, 1).unbind(1)
        maps = torch.stack(self._differences(images))
        combined = (AT_HIGH * (maps - low) / (high - low).clamp(min=1e-12)).mean(0)
        return combined.amax((2, 3)), over_image(combined, images.shape[2:])

    def calibrate(self, batches: Batches) -> None:
        pairs = [self._differences(part) for batch in batches for part in self.parts(batch["image"])]
        for row, maps in enumerate(zip(*pairs, strict=True)):
            values = torch.cat([each.flatten().cpu() for each in maps])
            for column, share in enumerate((LOW, HIGH)):
                self.quantiles[row, column] = exact_quantile(values, share)
        super().calibrate(batches)

    @cached_property
    def others(self) -> "OtherImages | None":
        folder = self.options.penalty
        return None if folder is None else OtherImages(folder, self.size, self.options.penalty_gray)

    @torch.no_grad()
    def _teach(self, images: torch.Tensor) -> torch.Tensor:
        return (self.teacher(images).float() - self.mean) / self.std

    def _penalty(self, count: int, device: torch.device) -> torch.Tensor | float:
        if self.others is None:
            return 0.0
        images = self.others.draw(count).to(device)
        return self.student(images)[:, : self.options.channels].float().square().mean()

    def _differences(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared differences to the student, [B, 1, h, w] each: of the teacher, of the autoencoder."""
        target, student = self._teach(images), self.student(images)
        rebuilt = self.autoencoder(images, target.shape[2:])
        local, overall = student.split(self.options.channels, 1)
        return tuple(
            (one - other).square().mean(1, keepdim=True)
            for one, other in ((target, local), (rebuilt, overall))
        )


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> descriptions [B, channels, *grid] through a narrow bottleneck.

    Table 7 of the paper for 256 x 256 pixels, where the bottleneck is one vector. Larger images get more of
    them, one per 256 pixels seen at steps of 32; a smaller side gets a smaller last kernel.
    """

    def __init__(self, options: EfficientADOptions, size: tuple[int, int]):
        super().__init__()
        narrow, wide = (scaled(published, options.autoencoder_width) for published in (32, 64))
        widths = (3, narrow, narrow, wide, wide, wide)
        layers = []
        for inside, outside in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inside, outside, 4, 2, 1), nn.ReLU(inplace=True)]
        # One kernel for both orientations: test-time augmentation turns images.
        self.encoder = nn.Sequential(*layers, nn.Conv2d(wide, options.latent, min(8, min(size) // 32)))
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inside, wide, 4, padding=2), nn.ReLU(inplace=True), nn.Dropout(0.2))
            for inside in (options.latent, *(5 * [wide]))
        )
        self.head = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, options.channels, 3, padding=1),
        )
        self.apply(initialize)

    def forward(self, images: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        values = self.encoder(standardized(images))
        for layer, size in zip(self.decoder, _decoder_sizes(images.shape[2:]), strict=True):
            values = layer(_resized(values, size))
        return self.head(_resized(values, grid))


class OtherImages:
    """Random images of a folder, enlarged, cropped and sometimes grey (section 3.2): float32 [B, 3, H, W]."""

    def __init__(self, folder: Path, size: tuple[int, int], gray: float):
        folder = resolve(folder)
        if not folder.is_dir():
            raise UserError(f"model.options.penalty={folder}: no such folder; name one, or leave it out")
        self.paths, self.size, self.gray = list_images(folder), size, gray

    def draw(self, count: int) -> torch.Tensor:
        height, width = self.size
        paths = [self.paths[i] for i in torch.randint(len(self.paths), (count,)).tolist()]
        read = [torch.from_numpy(read_image(path, (2 * height, 2 * width))) for path in paths]
        images = transforms.center_crop(as_input(torch.stack(read)), [height, width])
        gray = torch.rand(count, 1, 1, 1) < self.gray
        return torch.where(gray, transforms.rgb_to_grayscale(images, 3), images)


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast or saturation, one of them, of each image times 0.8 to 1.2."""
    kinds = (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation)
    chosen, factors = torch.randint(3, (len(images),)), 0.8 + 0.4 * torch.rand(len(images))
    draws = zip(images, chosen.tolist(), factors.tolist(), strict=True)
    return torch.stack([kinds[kind](image, factor) for image, kind, factor in draws])


def hard_mean(target: torch.Tensor, student: torch.Tensor, quantile: float) -> torch.Tensor:
    """Mean of each image's squared differences [B, C, h, w] from their quantile on, the hard features.

    torch.quantile, which interpolates between two values and so keeps the same ones, refuses more than 2^24.
    """
    squares = (target - student.float()).square().flatten(1)
    below = -int(-quantile * (squares.shape[1] - 1) // 1)
    return squares.topk(squares.shape[1] - below, dim=1, sorted=False).values.mean()


def over_image(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """[B, 1, h, w] -> [B, 1, H // 4, W // 4] that covers an image of (H, W), every patch at its centre.

    Beyond the outer centres the nearest value is repeated.
    """
    centre = (FIELD - 1) / 2 + 0.5 - STRIDE / 2  # of the first output, less half a step, in pixels
    theta = maps.new_zeros(maps.shape[0], 2, 3)
    for axis, (pixels, cells) in enumerate(zip(reversed(size), reversed(maps.shape[2:]), strict=True)):
        theta[:, axis, axis] = pixels / (STRIDE * cells)
        theta[:, axis, 2] = (pixels - 2 * centre) / (STRIDE * cells) - 1
    grid = functional.affine_grid(theta, [maps.shape[0], 1, *(side // STRIDE for side in size)], False)
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def _decoder_sizes(size: torch.Size) -> list[list[int]]:
    """Of the six decoder stages; 3, 8, 15, 32, 63 and 127 for 256 pixels, as published."""
    steps = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
    return [[max(1, side // step - less) for side in size] for step, less in steps]


def _resized(values: torch.Tensor, size: list[int]) -> torch.Tensor:
    return functional.interpolate(values, size=tuple(size), mode="bilinear")


def _teacher_weights(config: Config, options: EfficientADOptions) -> dict[str, torch.Tensor]:
    """Raises UserError if the file is missing, of another shape, or made of images that are not allowed."""
    path = resolve(options.teacher)
    content = read_tensors(path, "model.options.teacher", DISTILL)
    for name in SHAPE:
        if content.get(name) != getattr(options, name):
            raise UserError(
                f"model.options.teacher={path} has {name} {content.get(name)}, model.options.{name} is "
                f"{getattr(options, name)}: set it so, or {DISTILL}"
            )
    refuse_external(config, "the images behind model.options.teacher", Path(content["images"]))
    return content["teacher"]


DETECTOR = EfficientAD
