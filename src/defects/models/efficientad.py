"""EfficientAD: a student and an autoencoder imitate a teacher's patch descriptions of normal images.

Batzner et al. 2023 (arXiv 2303.14535).
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from defects.config_schema import Count, Fraction, NotNegative, Positive
from defects.data.datasets import as_input
from defects.data.folder_scan import list_images
from defects.data.images import read_image
from defects.messages import UserError
from defects.models.base import AnomalyDetector, Batch, Batches
from defects.models.inside import (
    LOWEST,
    cells_inside,
    clear_outside,
    lower_outside,
    mean_inside,
    mean_of_largest,
    split_inside,
)
from defects.models.statistics import ChannelMoments, exact_quantile
from defects.numerics import load_tensors
from defects.settings import Section

LOW = 0.9  # quantile of normal maps that becomes 0 (section 3.4)
HIGH = 0.995  # quantile of normal maps that becomes AT_HIGH
AT_HIGH = 0.1
PATCH_STRIDE_PIXELS = 4  # between neighbouring descriptions
PATCH_PIXELS = 33  # a side of the patch that one description sees
WIDTHS = {"small": (128, 256), "medium": (256, 512)}  # channels of the first and of the deeper layers
TEACHER_SHAPE = ("size", "width", "channels")  # what a teacher's file must agree on with the configuration
DISTILL = "make it with src/distill.py --images FOLDER and the same --config, --data, --model and --set"

Size = Literal["small", "medium"]


class DistillationOptions(Section):
    """How src/distill.py makes the teacher; the backbone is model.backbone."""

    steps: Count = 60_000
    batch_size: Count = 16
    lr: Positive = 1e-4
    weight_decay: NotNegative = 1e-5
    image_size: Annotated[int, Field(ge=PATCH_PIXELS)] = 256  # pixels a side; the backbone sees twice as many
    layers: list[str] | None = None  # of the backbone; None: those of strides 8 and 16
    augment: list[dict[str, Any]] = [{"name": "ToGray", "p": 0.1}]  # albumentations, as in the config
    statistics_images: Count = 10_000  # at most, for the mean and deviation of the features
    save_every: Count = 500  # steps


class EfficientAD(AnomalyDetector):
    """The map is the mean of two differences, student to teacher and student to autoencoder, each scaled on
    held-out normal images; the score is the map's maximum.

    As in the paper and unlike the first popular versions: Adam, no padding, quantiles of unseen normal
    images, exact however many values there are. Different from the paper: the maximum is taken before the
    map is brought to the image, and the map's border repeats its last value, since zeros would mean a
    difference that only a tenth of the normal patches reaches. With more than one image in a batch the
    hard values are those of each image: over the whole batch, the hardest image would take them all.
    """

    other_options = {"distillation": DistillationOptions}

    def __init__(
        self,
        image_size: tuple[int, int],
        expected_fpr: float,
        window: tuple[int, int] | None,
        *,
        teacher: Path | None = None,  # written by src/distill.py
        size: Size = "small",
        width: Positive = 1.0,  # of teacher and student; 1: as published
        channels: Count = 384,  # of a description
        autoencoder_width: Positive = 1.0,
        latent: Count = 64,  # the autoencoder's bottleneck
        hard_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        penalty: Path | None = None,  # folder of other images, which the student learns to describe otherwise
        penalty_gray: Fraction = 0.3,
    ):
        super().__init__(expected_fpr, window)
        if min(image_size) < PATCH_PIXELS:
            raise UserError(
                f"data.image_size and infer.window give images of {' x '.join(map(str, image_size))} pixels: "
                f"efficientad needs {PATCH_PIXELS} pixels a side or more"
            )
        self.image_size = image_size
        self.channels = channels
        self.hard_quantile = hard_quantile
        self.penalty = penalty
        self.penalty_gray = penalty_gray
        self.teacher_images: Path | None = None
        self.has_teacher = teacher is not None
        self.teacher = PatchDescription(size, width, channels)
        self.student = PatchDescription(size, width, 2 * channels)
        self.autoencoder = Autoencoder(image_size, channels, autoencoder_width, latent)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        # [low, high] of the student-teacher map and of the student-autoencoder map.
        self.register_buffer("quantiles", torch.tensor([[0.0, AT_HIGH], [0.0, AT_HIGH]]))
        if teacher is not None:
            content = read_teacher(teacher, {"size": size, "width": width, "channels": channels})
            self.teacher.load_state_dict(content["teacher"])
            self.teacher_images = Path(content["images"])
        self.teacher.requires_grad_(False)

    def outside_images(self) -> dict[str, Path]:
        folders = {"the images behind model.options.teacher": self.teacher_images}
        folders["model.options.penalty"] = self.penalty
        return {setting: folder for setting, folder in folders.items() if folder is not None}

    def prepare(self, batches: Batches) -> None:
        if not self.has_teacher:
            raise UserError(f"model.options.teacher names no file; {DISTILL}")
        if self.others is None:
            print("note: model.options.penalty names no folder, so the student learns without the penalty")
        moments = ChannelMoments(self.channels)
        for batch in batches:
            colours, inside = split_inside(batch["image"])
            described = self.teacher(colours)
            moments.add(described, patches_inside(inside, described.shape[2:]))
        mean, std = moments.result()
        self.mean.copy_(mean)
        self.std.copy_(std)

    def training_loss(self, batch: Batch) -> Batch:
        images, inside = split_inside(batch["image"])
        channels = self.channels
        jittered = jitter(images)
        target = self._teach(jittered)
        cells = patches_inside(inside, target.shape[2:])
        hard = hard_mean(self._teach(images), self.student(images)[:, :channels], self.hard_quantile, cells)
        rebuilt = self.autoencoder(jittered, target.shape[2:]).float()
        imitated = self.student(jittered)[:, channels:].float()
        losses = {
            "st": hard + self._penalty(len(images), images.device),
            "ae": mean_inside((rebuilt - target).square(), cells),
            "stae": mean_inside((imitated - rebuilt).square(), cells),
        }
        return {"loss": sum(losses.values())} | losses

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = self.quantiles.view(2, 2, 1, 1, 1, 1).unbind(1)
        colours, inside = split_inside(images)
        maps = torch.stack(self._differences(colours))
        combined = (AT_HIGH * (maps - low) / (high - low).clamp(min=1e-12)).mean(0)
        cells = patches_inside(inside, combined.shape[2:])
        score = clear_outside(combined, cells, LOWEST).amax((2, 3))
        return score, over_image(lower_outside(combined, cells), images.shape[2:])

    def calibrate(self, batches: Batches) -> None:
        from_teacher = []
        from_autoencoder = []
        for batch in batches:
            for images in self.split_windows(batch["image"]):
                colours, inside = split_inside(images)
                differences = self._differences(colours)
                cells = patches_inside(inside, differences[0].shape[2:])
                for values, maps in zip((from_teacher, from_autoencoder), differences, strict=True):
                    values.append((maps.flatten() if cells is None else maps[cells]).cpu())
        for row, differences in enumerate((from_teacher, from_autoencoder)):
            values = torch.cat(differences)
            self.quantiles[row, 0] = exact_quantile(values, LOW)
            self.quantiles[row, 1] = exact_quantile(values, HIGH)
        super().calibrate(batches)

    @cached_property
    def others(self) -> "OtherImages | None":
        """Read when training starts: a trained detector scores where these images are not."""
        if self.penalty is None:
            return None
        return OtherImages(self.penalty, self.image_size, self.penalty_gray)

    @torch.no_grad()
    def _teach(self, images: torch.Tensor) -> torch.Tensor:
        return (self.teacher(images).float() - self.mean) / self.std

    def _penalty(self, count: int, device: torch.device) -> torch.Tensor | float:
        if self.others is None:
            return 0.0
        images = self.others.draw(count).to(device)
        return self.student(images)[:, : self.channels].float().square().mean()

    def _differences(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared differences to the student, [B, 1, h, w] each: of the teacher, of the autoencoder."""
        target = self._teach(images)
        local, overall = self.student(images).split(self.channels, 1)
        rebuilt = self.autoencoder(images, target.shape[2:])
        of_teacher = (target - local).square().mean(1, keepdim=True)
        of_autoencoder = (rebuilt - overall).square().mean(1, keepdim=True)
        return of_teacher, of_autoencoder


class PatchDescription(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> one description of `channels` numbers per patch of 33 x 33 pixels.

    Batzner et al. 2023 (arXiv 2303.14535), tables 5 and 6. Without padding, output (i, j) sees the pixels
    from (4i, 4j) to (4i + 32, 4j + 32) and 256 pixels make 56 outputs; with padding they make 64. The
    weights are the same: the teacher is distilled with padding and used without, since zeros around an
    image would be described like defects. `width` multiplies the published numbers of hidden channels.
    """

    def __init__(self, size: Size, width: float, channels: int, padding: bool = False):
        super().__init__()
        first, deep = (scale_channels(published, width) for published in WIDTHS[size])
        pad = int(padding)
        is_medium = size == "medium"
        layers = [nn.Conv2d(3, first, 4, padding=3 * pad), nn.ReLU(inplace=True), nn.AvgPool2d(2, 2, pad)]
        layers += [nn.Conv2d(first, deep, 4, padding=3 * pad), nn.ReLU(inplace=True), nn.AvgPool2d(2, 2, pad)]
        if is_medium:
            layers += [nn.Conv2d(deep, deep, 1), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(deep, deep, 3, padding=pad), nn.ReLU(inplace=True), nn.Conv2d(deep, channels, 4)]
        if is_medium:
            layers += [nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)]
        self.layers = nn.Sequential(*layers).apply(initialize_he)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(standardize(images))


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> descriptions [B, channels, *grid] through a narrow bottleneck.

    Table 7 of the paper for 256 x 256 pixels, where the bottleneck is one vector. Larger images get more of
    them, one per 256 pixels seen at steps of 32; a smaller side gets a smaller last kernel.
    """

    def __init__(self, image_size: tuple[int, int], channels: int, width: float, latent: int):
        super().__init__()
        narrow, wide = (scale_channels(published, width) for published in (32, 64))
        widths = (3, narrow, narrow, wide, wide, wide)
        layers = []
        for inside, outside in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inside, outside, 4, 2, 1), nn.ReLU(inplace=True)]
        # One kernel for both orientations: test-time augmentation turns images.
        self.encoder = nn.Sequential(*layers, nn.Conv2d(wide, latent, min(8, min(image_size) // 32)))
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inside, wide, 4, padding=2), nn.ReLU(inplace=True), nn.Dropout(0.2))
            for inside in (latent, *(5 * [wide]))
        )
        self.head = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, channels, 3, padding=1),
        )
        self.apply(initialize_he)

    def forward(self, images: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        values = self.encoder(standardize(images))
        for layer, size in zip(self.decoder, _decoder_sizes(images.shape[2:]), strict=True):
            values = layer(_interpolate(values, size))
        return self.head(_interpolate(values, grid))


class OtherImages:
    """Random images of a folder, enlarged, cropped and sometimes grey (section 3.2): float32 [B, 3, H, W]."""

    def __init__(self, folder: Path, size: tuple[int, int], gray: float):
        if not folder.is_dir():
            raise UserError(f"model.options.penalty={folder}: no such folder; name one, or leave it out")
        self.paths = list_images(folder)
        self.size = size
        self.gray = gray

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
    chosen = torch.randint(3, (len(images),))
    factors = 0.8 + 0.4 * torch.rand(len(images))
    draws = zip(images, chosen.tolist(), factors.tolist(), strict=True)
    return torch.stack([kinds[kind](image, factor) for image, kind, factor in draws])


def hard_mean(
    target: torch.Tensor, student: torch.Tensor, quantile: float, inside: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of each image's squared differences [B, C, h, w] from their quantile on, the hard features.

    With `inside` bool [B, 1, h, w] of those of these cells.
    torch.quantile, which interpolates between two values and so keeps the same ones, refuses more than 2^24.
    """
    squares = (target - student.float()).square().flatten(1)
    below = -int(-quantile * (squares.shape[1] - 1) // 1)
    if inside is not None:
        judged = inside.expand_as(target).flatten(1)
        return mean_of_largest(squares, squares.shape[1] - below, judged, is_share=True).mean()
    return squares.topk(squares.shape[1] - below, dim=1, sorted=False).values.mean()


def patches_inside(inside: torch.Tensor | None, grid: torch.Size) -> torch.Tensor | None:
    """bool [B, 1, H, W] -> [B, 1, h, w]: patches with any pixel inside among the innermost ones.

    These are as many as there are between neighbouring patches.
    """
    if inside is None:
        return None
    first = (PATCH_PIXELS - PATCH_STRIDE_PIXELS + 1) // 2
    height, width = (PATCH_STRIDE_PIXELS * cells for cells in grid)
    return cells_inside(inside[..., first : first + height, first : first + width], grid)


def over_image(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """[B, 1, h, w] -> [B, 1, H // 4, W // 4] that covers an image of (H, W), every patch at its centre.

    Beyond the outer centres the nearest value is repeated.
    """
    # Of the first output, less half a step, in pixels.
    centre = (PATCH_PIXELS - 1) / 2 + 0.5 - PATCH_STRIDE_PIXELS / 2
    theta = maps.new_zeros(maps.shape[0], 2, 3)
    for axis, (pixels, cells) in enumerate(zip(reversed(size), reversed(maps.shape[2:]), strict=True)):
        theta[:, axis, axis] = pixels / (PATCH_STRIDE_PIXELS * cells)
        theta[:, axis, 2] = (pixels - 2 * centre) / (PATCH_STRIDE_PIXELS * cells) - 1
    shape = [maps.shape[0], 1, *(side // PATCH_STRIDE_PIXELS for side in size)]
    grid = functional.affine_grid(theta, shape, False)
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def _decoder_sizes(size: torch.Size) -> list[list[int]]:
    """Of the six decoder stages; 3, 8, 15, 32, 63 and 127 for 256 pixels, as published."""
    steps = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
    return [[max(1, side // step - less) for side in size] for step, less in steps]


def _interpolate(values: torch.Tensor, size: list[int]) -> torch.Tensor:
    return functional.interpolate(values, size=tuple(size), mode="bilinear")


def scale_channels(published: int, width: float) -> int:
    return max(1, round(published * width))


def initialize_he(layer: nn.Module) -> None:
    """He's initialisation: with torch's own, signals fade on their way and the first epochs are lost."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def standardize(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] RGB -> the mean and deviation of ImageNet."""
    return transforms.normalize(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def read_teacher(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """What src/distill.py wrote: `teacher` (its state), `images` (where it learnt) and its shape.

    Raises UserError if the file is missing or of another shape.
    """
    content = read_tensors(path, "model.options.teacher", DISTILL)
    for name in TEACHER_SHAPE:
        if content.get(name) != shape[name]:
            raise UserError(
                f"model.options.teacher={path} has {name} {content.get(name)}, model.options.{name} is "
                f"{shape[name]}: set it so, or {DISTILL}"
            )
    return content


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


DETECTOR = EfficientAD
