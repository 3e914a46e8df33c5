"""SuperSimpleNet: noise in feature space stands for defects, and real ones join it where they are known.

Rolih et al., ICPR 2024 (arXiv 2408.03143); weak and mixed supervision from the JIMS 2025 version
(arXiv 2508.19060).
"""

from functools import partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from defects.config_schema import BackboneConfig, Count, Positive
from defects.models.base import AnomalyDetector, Batch, Batches
from defects.models.features import Features, check_sizes
from defects.models.inside import average_inside, cells_inside, clear_outside, lower_outside, split_inside
from defects.models.statistics import ChannelMoments, GaussianSmoothing, raise_small_deviations
from defects.models.synthetic_anomalies import perlin_mask

TRUNCATION_MARGIN = 0.5  # of the truncated L1 loss
SIMPLENET_GAMMA = 4.0  # of the focal loss
ADAPTOR_LR = 0.5  # of the heads' learning rate


class SuperSimpleNet(AnomalyDetector):
    """The raw score is the logit of the classification head, the map that of the segmentation head.

    Unsupervised, it learns from normal images and noise, and is calibrated on held-out normal ones.
    Supervised, it learns from both classes and its probability is the logistic of the score. A defective
    image without mask then teaches the score alone; its map is not judged and it gets no noise, since
    nobody knows where its defect is.

    The classification head sees the features as the backbone made them (JIMS), not the adapted ones (ICPR);
    the same noise is added to both. The noise has to fit the features' scale, and `noise_std` was published
    for one set of weights: other backbones want `standardize`, which makes it a share of each channel's
    deviation (in four epochs on raw features of MobileNetV2 the published 0.015 taught nothing, 0.5 on
    standardised ones did). Averages at the border leave out what lies beyond it; the published code counts
    zeros there.
    """

    def __init__(
        self,
        backbone: BackboneConfig | None,
        view_sizes: list[tuple[int, int]],
        expected_fpr: float,
        window: tuple[int, int] | None,
        *,
        supervised: bool = False,  # true: real defects are learnt from too, with masks where there are any
        layers: list[str] | None = None,  # None: those of strides 8 and 16
        standardize: bool = False,  # channels to mean 0 and deviation 1 before anything else
        noise_std: Positive = 0.015,  # published for the raw features of wide_resnet50_2.tv_in1k
        # published: 0.6 if supervised, and for VisA
        perlin_threshold: Annotated[float, Field(gt=-1, lt=1)] = 0.2,
        hidden: Count = 1024,  # channels of the segmentation head
        class_channels: Count = 128,  # of the classification head
        smoothing: Positive = 4.0,  # sigma of the map, in pixels of the image
    ):
        super().__init__(expected_fpr, window)
        self.supervised = supervised
        self.standardize = standardize
        self.noise_std = noise_std
        self.perlin_threshold = perlin_threshold
        if supervised:
            self.learns_from = "both"
            # Defects are oversampled in rotations, so normal images must have the same ones, or rotation
            # would tell the classes apart.
            self.learns_upright = False
            self.uses_masks = True
            self.needs_holdout = False
        self.features = Features(backbone, layers, view_sizes[0])
        check_sizes(self.features, backbone.name, view_sizes)
        channels = sum(self.features.channels)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(hidden, 1, 1, bias=False),
        )
        self.classification = ClassHead(channels, class_channels)
        self.smooth = GaussianSmoothing(smoothing)
        for part in (self.adaptor, self.segmentation, self.classification):
            part.apply(_initialize_xavier)

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        if not self.standardize:
            return
        moments = ChannelMoments(self.mean.shape[1])
        for batch in batches:
            colours, inside = split_inside(batch["image"])
            grid = self._common_grid(colours)
            moments.add(grid, cells_inside(inside, grid.shape[2:]))
        self.mean.copy_(moments.mean.float().view_as(self.mean))
        self.std.copy_(raise_small_deviations(moments.std).float().view_as(self.std))

    def training_loss(self, batch: Batch) -> Batch:
        colours, inside = split_inside(batch["image"])
        features = self._features(colours)
        defect, free, has_mask = self._truth(batch, features.shape[2:])
        cells = cells_inside(inside, features.shape[2:])
        if cells is not None:
            free = free * cells
            has_mask = has_mask * cells
            cells = _twice(cells)
        noisy = _twice(free) * self._draw_blotches(2 * len(features), features)
        noise = self._draw_noise(noisy, features)
        adapted = _twice(self.adaptor(features)) + noise
        maps, score = self._heads(adapted, _twice(features) + noise, cells)
        target = torch.maximum(_twice(defect), noisy)
        label = torch.maximum(_twice(batch["label"]), noisy.amax((2, 3)))
        return _losses(maps, score, target, label, _twice(has_mask))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        colours, inside = split_inside(images)
        features = self._features(colours)
        cells = cells_inside(inside, features.shape[2:])
        maps, score = self._heads(self.adaptor(features), features, cells)
        enlarge = partial(functional.interpolate, size=images.shape[2:], mode="bilinear")
        return score.float(), average_inside(maps.float(), cells, lambda part: self.smooth(enlarge(part)))

    def calibrate(self, batches: Batches) -> None:
        if not self.supervised:
            super().calibrate(batches)

    def probability(self, score: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(score) if self.supervised else super().probability(score)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        heads = [*self.segmentation.parameters(), *self.classification.parameters()]
        adaptor = list(self.adaptor.parameters())
        return [
            {"params": heads, "weight_decay": weight_decay},
            {"params": adaptor, "lr_scale": ADAPTOR_LR, "weight_decay": weight_decay},
        ]

    def _common_grid(self, images: torch.Tensor) -> torch.Tensor:
        """All layers on twice the finest one's grid, 3x3 averaged: [B, C, h, w]."""
        layers = [maps.float() for maps in self.features(images)]
        height = max(maps.shape[2] for maps in layers)
        width = max(maps.shape[3] for maps in layers)
        grid = [2 * height, 2 * width]
        layers = [functional.interpolate(maps, size=grid, mode="bilinear") for maps in layers]
        return functional.avg_pool2d(torch.cat(layers, 1), 3, 1, 1, count_include_pad=False)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return (self._common_grid(images) - self.mean) / self.std

    def _heads(
        self, adapted: torch.Tensor, features: torch.Tensor, inside: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.segmentation(adapted)
        # Unsupervised, the map learns from its own losses alone.
        classified = maps if self.supervised else maps.detach()
        return maps, self.classification(features, classified, inside)

    def _truth(self, batch: Batch, grid: torch.Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is known of real defects, [B, 1, h, w] each: where they are, where noise may go; [B, 1, 1, 1]:
        whether that is known."""
        images = split_inside(batch["image"])[0]
        if not self.supervised:
            nowhere = images.new_zeros(len(images), 1, *grid)
            everywhere = images.new_ones(len(images), 1, 1, 1)
            return nowhere, everywhere, everywhere
        has_mask = batch["masked"][..., None, None]
        coverage = functional.interpolate(batch["mask"], size=grid, mode="area")
        return shrink_masks(coverage), has_mask * (coverage == 0), has_mask

    def _draw_blotches(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Where noise goes, [count, 1, h, w]; nowhere in half of them."""
        grid = tuple(like.shape[2:])
        masks = [perlin_mask(grid, self.perlin_threshold) * (np.random.random() < 0.5) for _ in range(count)]
        return torch.from_numpy(np.stack(masks)[:, None]).to(like)

    def _draw_noise(self, noisy: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Gaussian noise [B, C, h, w] in the cells of `noisy` [B, 1, h, w], 0 elsewhere."""
        where = noisy[:, 0] > 0
        noise = like.new_zeros(*where.shape, like.shape[1])
        # Only what is used is drawn: the rest would be a sixth of the training time on a CPU.
        drawn = torch.randn(int(where.sum()), like.shape[1], device=like.device)
        noise[where] = drawn * self.noise_std
        return noise.permute(0, 3, 1, 2)


class ClassHead(nn.Module):
    """Features [B, C, h, w] and map [B, 1, h, w] -> logit [B, 1], of the cells inside, bool [B, 1, h, w]."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels + 1, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.logit = nn.Linear(2 * width + 2, 1)

    def forward(
        self, features: torch.Tensor, maps: torch.Tensor, inside: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = self.block(torch.cat([features, maps], 1))
        if inside is None:
            pooled = [pool((2, 3)) for values in (hidden, maps) for pool in (values.amax, values.mean)]
            return self.logit(torch.cat(pooled, 1))
        pooled = []
        count = inside.sum((2, 3)).clamp(min=1)
        for values in (hidden, maps):
            pooled.append(lower_outside(values, inside).amax((2, 3)))
            pooled.append(clear_outside(values, inside, 0.0).sum((2, 3)) / count)
        return self.logit(torch.cat(pooled, 1))


def shrink_masks(coverage: torch.Tensor) -> torch.Tensor:
    """The defective cells (1.0) among [B, 1, h, w] of the share of each cell that a defect covers.

    A cell counts from half of the largest coverage among itself and its neighbours on. Inside and at the
    edge of a defect that is the published threshold of 0.5; a scratch or pore narrower than half a cell,
    which that threshold erases, keeps the cells it covers most.
    """
    largest = functional.max_pool2d(coverage, 3, 1, 1)
    return ((coverage > 0) & (coverage >= 0.5 * largest)).to(coverage)


def _losses(
    maps: torch.Tensor,
    score: torch.Tensor,
    target: torch.Tensor,
    label: torch.Tensor,
    cell_weight: torch.Tensor,
) -> Batch:
    """Truncated L1 of normal and of defective cells, focal losses of map and score."""
    maps = maps.float()
    score = score.float()
    cell_weight = cell_weight.expand_as(maps)
    normal = _weighted_mean(functional.relu(TRUNCATION_MARGIN + maps), cell_weight * (1 - target))
    defective = _weighted_mean(functional.relu(TRUNCATION_MARGIN - maps), cell_weight * target)
    losses = {
        "map": normal + defective,
        "focal_map": _weighted_mean(
            sigmoid_focal_loss(maps, target, alpha=-1, gamma=SIMPLENET_GAMMA), cell_weight
        ),
        "focal_score": sigmoid_focal_loss(score, label, alpha=-1, gamma=SIMPLENET_GAMMA).mean(),
    }
    return {"loss": sum(losses.values())} | losses


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean; 0 where nothing has weight."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def _twice(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, values])


def _initialize_xavier(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_normal_(module.weight)


DETECTOR = SuperSimpleNet
