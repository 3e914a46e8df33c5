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
from defects.models.coreset import greedy_coreset
from defects.models.features import Features, check_sizes
from defects.models.inside import cells_inside, mean_of_largest, select_inside, split_inside
from defects.models.patchcore import correct_distances, measure_spacing
from defects.models.statistics import StreamingCovariance, Whitening
from defects.processes import print_once

CANDIDATES = 20_000  # patches of all images among which those of the bank are chosen
DISTANCE_STD = 3.0  # of the distances' channel on normal images, whose features have a variance of one
FLOOR = 1.0  # the smallest distance of whitened patches; that to another image's is some times larger


class PatchHead(Detector):
    """A logit for each patch and target; the raw score is the mean of the largest ones of the image.

    How many is a number, not a share: a defect does not grow with the image that it is in.

    Layers of a frozen backbone are averaged over 3x3 neighbours, put on the grid of one of them and whitened
    with the statistics of normal images. Several heads, which differ in their random start, learn from the
    same batches and are averaged. Images teach the score; where masks are known, patches are taught too: a
    patch is defective if any of its pixels is, so that small defects do not vanish, and defective and normal
    patches weigh as much as each other.

    One more channel is the distance to the nearest of a bank of normal patches, less a share of that patch's
    own spacing, as in PatchCore. In training the patches of an image's own group are left out of the bank:
    the nearest ones would be its own or those of a copy, which no image to be scored has.

    The backbone learns nothing, so the training images are embedded once, and the heads learn from that:
    see training.embedding. These images are upright: it is their features that are turned.
    """

    uses_masks = True
    uses_groups = True
    uses_tta = False  # the bank holds upright images, to which the patches of turned ones are not near
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
        bank: Annotated[int, Field(ge=0)] = 1000,  # normal patches whose distance is a channel; 0: it is none
        density: Fraction = 0.5,  # of a bank patch's spacing, taken off the distance to it
        width: Count = 100,  # channels of a head
        heads: Count = 3,  # that are averaged
        top_patches: Count = 8,  # whose mean logit is the score
        noise: NotNegative = 0.3,  # deviation of what is added to whitened features in training
        map_loss: NotNegative = 1.0,  # weight of the patches' loss, beside that of the images
        pool_size: Annotated[int, Field(ge=16)] = 1500,  # training images, augmented ones, that are embedded
    ):
        super().__init__()
        self.targets = targets
        self.members = DIHEDRAL[symmetries]
        self.top_patches = top_patches
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
        channels = sum(self.features.channels)
        self.whitening = Whitening(channels, shrinkage)
        self.bank_size = bank
        self.density = density
        if bank:
            self.register_buffer("memory_bank", torch.zeros(1, channels))  # whitened
            self.register_buffer("bank_groups", torch.zeros(1, dtype=torch.int64))
            self.register_buffer("reductions", torch.zeros(1))  # of the distances to the bank's patches
            self.register_buffer("distance_mean", torch.zeros(()))
            self.register_buffer("distance_std", torch.ones(()))
            channels += 1
        self.head = nn.Sequential(
            nn.Conv2d(channels, heads * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(heads * width, heads * width, 3, padding=1, groups=heads),
            nn.ReLU(inplace=True),
            nn.Conv2d(heads * width, heads * len(targets), 1, groups=heads),
        )

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        """Whitening and bank, from the normal images or, where there are none, from all."""
        normal = PatchSample(self.whitening.weight, batches.images)
        defective = PatchSample(self.whitening.weight, batches.images)
        small = marked = 0
        for batch in batches:
            colours, inside = split_inside(batch["image"])
            patches = self.features.patches(colours, self.grid)
            cells = cells_inside(inside, patches.shape[2:])
            is_defective = batch["label"][:, -1] > 0
            for row, maps in enumerate(patches):
                sample = defective if is_defective[row] else normal
                judged = select_inside(maps, None if cells is None else cells[row])
                sample.add(judged, batch["group"][row])
            pixels = batch["mask"].amax(1).sum((1, 2))
            cell_pixels = batch["mask"][0, 0].numel() / patches[0, 0].numel()
            marked += int((pixels > 0).sum())
            small += int(((pixels > 0) & (pixels < cell_pixels)).sum())
        sample = normal if normal.statistics.count else defective
        self.whitening.fit(sample.statistics)
        if self.bank_size:
            self._fill_bank(self.whitening(torch.cat(sample.patches)), torch.stack(sample.groups))
        if small:
            print_once(
                f"note: {small} of {marked} marked images have less marked than one patch of "
                f"{cell_pixels:.0f} pixels; it is learnt as a whole"
            )

    def _fill_bank(self, candidates: torch.Tensor, groups: torch.Tensor) -> None:
        """From whitened patches [N, C, 1, 1] of the groups [N]."""
        vectors = candidates.flatten(1).contiguous()  # other layouts give other last digits
        chosen = greedy_coreset(vectors, self.bank_size).indices
        self.memory_bank = vectors[chosen]
        self.bank_groups = groups[chosen]
        self.reductions = self.density * measure_spacing(self.memory_bank, vectors)
        distances = self._measure_distances(candidates, groups)
        self.distance_mean.copy_(distances.mean())
        self.distance_std.copy_(distances.std(correction=0).clamp(min=1e-6))

    def _measure_distances(self, features: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
        """Corrected distances [B, 1, h, w] of whitened features to the bank.

        For images of `groups` [B] these are left out of it, unless it has no others.
        """
        batch, _, height, width = features.shape
        vectors = features.permute(0, 2, 3, 1).flatten(1, 2)
        if groups is None or len(self.bank_groups.unique()) == 1:
            distances = correct_distances(vectors.flatten(0, 1), self.memory_bank, self.reductions, FLOOR)
            return distances.view(batch, 1, height, width)
        rows = []
        for group, patches in zip(groups, vectors, strict=True):
            is_own = self.bank_groups == group
            reductions = self.reductions.masked_fill(is_own, -torch.inf)  # no patch is near its own group
            rows.append(correct_distances(patches, self.memory_bank, reductions, FLOOR))
        return torch.stack(rows).view(batch, 1, height, width)

    def _describe_patches(self, images: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Images [B, 3, H, W] -> what the head is given [B, C, h, w]; `groups` [B] are those learnt from."""
        colours, _ = split_inside(images)
        features = self.whitening(self.features.patches(colours, self.grid))
        if not self.bank_size:
            return features
        distances = self._measure_distances(features, groups)
        distances = DISTANCE_STD * (distances - self.distance_mean) / self.distance_std
        # The layout of training's weights, or a model from a file would differ from it in the last digit.
        return torch.cat([features, distances], 1).contiguous(memory_format=torch.channels_last)

    def embed(self, batch: Batch) -> Batch:
        """What the head is given [B, C, h, w], and for each patch and class whether it is defective.

        With a region of interest also which patches are inside, [B, 1, h, w].
        """
        features = self._describe_patches(batch["image"], batch["group"])
        mask = functional.adaptive_max_pool2d(batch["mask"], features.shape[2:])
        embedded = {
            "features": features,
            "mask": mask,
            "masked": batch["masked"],
            "label": batch["label"],
        }
        inside = cells_inside(split_inside(batch["image"])[1], features.shape[2:])
        return embedded if inside is None else embedded | {"inside": inside.float()}

    def training_loss(self, batch: Batch) -> Batch:
        member = self.members[int(torch.randint(len(self.members), ()))]
        features = turn(batch["features"].float(), *member)
        mask = turn(batch["mask"], *member)
        inside = turn(batch["inside"], *member) > 0 if "inside" in batch else None
        logits = self._logits(features + self.noise * self._draw_noise(features))
        scores = self._score(logits, inside)
        label = batch["label"][:, None].expand_as(scores)
        image_loss = functional.binary_cross_entropy_with_logits(scores, label)
        if len(self.targets) > 1:
            mask = torch.cat([mask, mask.amax(1, keepdim=True)], 1)
        of_heads = [balanced_map_loss(maps, mask, batch["masked"], inside) for maps in logits.unbind(1)]
        map_loss = torch.stack(of_heads).mean()
        return {
            "loss": image_loss + self.map_loss * map_loss,
            "map": map_loss.detach(),
            "score": scores.detach().mean(1),
        }

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(self._describe_patches(images))
        classes = max(1, len(self.targets) - 1)
        inside = cells_inside(split_inside(images)[1], logits.shape[3:])
        return self._score(logits, inside).mean(1), logits.mean(1)[:, :classes].sigmoid()

    @staticmethod
    def _draw_noise(like: torch.Tensor) -> torch.Tensor:
        """Gaussian noise [B, C, h, w], drawn patch by patch: other orders take a CPU ten times longer."""
        batch, channels, height, width = like.shape
        return torch.randn(batch, height, width, channels, device=like.device).permute(0, 3, 1, 2)

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        """Whitened features -> [B, heads, C, h, w]."""
        logits = self.head(features).float()
        return logits.unflatten(1, (-1, len(self.targets)))

    def _score(self, logits: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        """[B, heads, C], of the patches inside, bool [B, 1, h, w]."""
        judged = None if inside is None else inside.flatten(2)[:, None]
        return mean_of_largest(logits.flatten(3), self.top_patches, judged)


class PatchSample:
    """Statistics of the patches of some of `images` images, and a random part of the patches themselves."""

    def __init__(self, like: torch.Tensor, images: int):
        self.statistics = StreamingCovariance(like.shape[0], like.device)
        self.patches: list[torch.Tensor] = []  # [n, C, 1, 1] of an image
        self.groups: list[torch.Tensor] = []  # the group of each patch
        self.per_image = max(1, CANDIDATES // images)
        self.generator = torch.Generator().manual_seed(0)

    def add(self, patches: torch.Tensor, group: torch.Tensor) -> None:
        """Patches [P, C] of one image; there may be none."""
        self.statistics.update(patches)
        chosen = torch.randperm(len(patches), generator=self.generator)[: self.per_image]
        self.patches.append(patches[chosen.to(patches.device), :, None, None])
        self.groups += [group] * len(chosen)


DETECTOR = PatchHead
