"""Patch head: a small convolutional head on frozen, whitened features, taught by a few defects."""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from defects.config_schema import BackboneConfig, Count, Fraction, NotNegative, Share
from defects.data.transforms import DIHEDRAL, turn
from defects.messages import UserError
from defects.models.base import Batch, Batches, Detector
from defects.models.classifier import balanced_map_loss
from defects.models.features import Features, check_sizes
from defects.models.statistics import StreamingCovariance, Whitening
from defects.processes import print_once


class PatchHead(Detector):
    """A logit for each patch and target; the raw score is the mean of the largest ones of the image.

    Layers of a frozen backbone are averaged over 3x3 neighbours, put on the grid of one of them and whitened
    with the statistics of normal images. Several heads, which differ in their random start, learn from the
    same batches and are averaged. Images teach the score; where masks are known, patches are taught too: a
    patch is defective if any of its pixels is, so that small defects do not vanish, and defective and normal
    patches weigh as much as each other.

    The backbone learns nothing, so the training images are embedded once, and the heads learn from that:
    see training.embedding.
    """

    uses_masks = True
    trains_on_features = True
    int8 = True

    def __init__(
        self,
        backbone: BackboneConfig | None,
        view_sizes: list[tuple[int, int]],
        targets: tuple[str, ...],
        symmetries: str,
        *,
        layers: list[str] | None = None,  # None: those of strides 8 and 16
        grid: str | None = None,  # the layer on whose grid they are put; None: the finest
        shrinkage: Share = 0.1,  # of the covariance towards a multiple of the identity, for whitening
        width: Count = 100,  # channels of a head
        heads: Count = 3,  # that are averaged
        top_share: Fraction = 0.01,  # of the patches, whose mean logit is the score; 0: the largest alone
        noise: NotNegative = 0.3,  # deviation of what is added to whitened features in training
        map_loss: NotNegative = 1.0,  # weight of the patches' loss, beside that of the images
        pool_size: Annotated[int, Field(ge=16)] = 1500,  # training images, augmented ones, that are embedded
    ):
        super().__init__()
        self.targets = targets
        self.members = DIHEDRAL[symmetries]
        self.top_share = top_share
        self.noise = noise
        self.map_loss = map_loss
        self.pool_size = pool_size
        self.features = Features(backbone, layers, view_sizes[0])
        check_sizes(self.features, backbone.name, view_sizes)
        if grid is not None and grid not in self.features.layers:
            raise UserError(
                f"model.options.grid={grid} is none of the layers {', '.join(self.features.layers)}: name "
                "one of them, or null for the finest"
            )
        self.grid = grid
        self.whitening = Whitening(sum(self.features.channels), shrinkage)
        self.head = nn.Sequential(
            nn.Conv2d(sum(self.features.channels), heads * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(heads * width, heads * width, 3, padding=1, groups=heads),
            nn.ReLU(inplace=True),
            nn.Conv2d(heads * width, heads * len(targets), 1, groups=heads),
        )

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        """Whitening from the normal images or, where there are none, from all."""
        channels, device = self.whitening.weight.shape[0], self.whitening.weight.device
        of_normal = StreamingCovariance(channels, device)
        of_defective = StreamingCovariance(channels, device)
        small = marked = 0
        for batch in batches:
            patches = self.features.patches(batch["image"], self.grid)
            is_defective = batch["label"][:, -1] > 0
            for image, defective in zip(patches, is_defective.tolist(), strict=True):
                (of_defective if defective else of_normal).update(image.flatten(1).T)
            pixels = batch["mask"].amax(1).sum((1, 2))
            cell_pixels = batch["mask"][0, 0].numel() / patches[0, 0].numel()
            marked += int((pixels > 0).sum())
            small += int(((pixels > 0) & (pixels < cell_pixels)).sum())
        self.whitening.fit(of_normal if of_normal.count else of_defective)
        if small:
            print_once(
                f"note: {small} of {marked} marked images have less marked than one patch of "
                f"{cell_pixels:.0f} pixels; it is learnt as a whole"
            )

    def embed(self, batch: Batch) -> Batch:
        """Whitened features [B, C, h, w], and for each patch and class whether it is defective."""
        features = self.whitening(self.features.patches(batch["image"], self.grid))
        mask = functional.adaptive_max_pool2d(batch["mask"], features.shape[2:])
        return {
            "features": features,
            "mask": mask,
            "masked": batch["masked"],
            "label": batch["label"],
        }

    def training_loss(self, batch: Batch) -> Batch:
        member = self.members[int(torch.randint(len(self.members), ()))]
        features = turn(batch["features"].float(), *member)
        mask = turn(batch["mask"], *member)
        logits = self._logits(features + self.noise * self._draw_noise(features))
        scores = self._score(logits)
        label = batch["label"][:, None].expand_as(scores)
        image_loss = functional.binary_cross_entropy_with_logits(scores, label)
        if len(self.targets) > 1:
            mask = torch.cat([mask, mask.amax(1, keepdim=True)], 1)
        of_heads = [balanced_map_loss(maps, mask, batch["masked"]) for maps in logits.unbind(1)]
        map_loss = torch.stack(of_heads).mean()
        return {
            "loss": image_loss + self.map_loss * map_loss,
            "map": map_loss.detach(),
            "score": scores.detach().mean(1),
        }

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(self.whitening(self.features.patches(images, self.grid)))
        classes = max(1, len(self.targets) - 1)
        return self._score(logits).mean(1), logits.mean(1)[:, :classes].sigmoid()

    @staticmethod
    def _draw_noise(like: torch.Tensor) -> torch.Tensor:
        """Gaussian noise [B, C, h, w], drawn patch by patch: other orders take a CPU ten times longer."""
        batch, channels, height, width = like.shape
        return torch.randn(batch, height, width, channels, device=like.device).permute(0, 3, 1, 2)

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """Whitened features -> [B, heads, C, h, w]."""
        logits = self.head(features).float()
        return logits.unflatten(1, (-1, len(self.targets)))

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, heads, C]"""
        patches = logits.flatten(3)
        count = max(1, round(self.top_share * patches.shape[3]))
        return patches.topk(count, 3).values.mean(3)


DETECTOR = PatchHead
