"""The contract that every detector keeps, supervised or not."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from defects.data.labels import DEFECT, Labels

Batch = dict[str, torch.Tensor]


class Batches(Protocol):
    """Batches of images, each image once and as it is; they may be gone through several times.

    To be prepared with, an image comes as the windows in which it is scored, each with the image's labels.
    `row` [B] of a batch numbers the images, or windows, from 0.
    """

    images: int  # in all batches of all processes together, each window counted

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


class Detector(nn.Module):
    """Images in, defect scores out; normalisation, smoothing and score scaling live inside `forward`.

    A batch holds image [B, 3, H, W] float32 in [0, 1], label [B, C] (1: defective), weight [B, 1]; for a
    detector that `uses_masks` also mask [B, K, H, W] (1: defect) and masked [B, 1] (1: the mask is known,
    as it is for every normal image). C counts `targets`, the last of which is whether there is any defect;
    K their classes, or is 1.

    Randomness comes from torch's and numpy's global generators, which are seeded for every epoch.
    Buffers may take their size in `prepare`: loading a checkpoint brings it back.
    """

    targets: tuple[str, ...] = (DEFECT,)  # what its scores answer; data.targets if it tells classes apart
    learns_from: Literal["normal", "both"] = "both"  # classes that prepare and training_loss are given
    # Whether training_loss is given each image once and as it will be scored, not in the rotations and flips
    # of the training list. Only for detectors that learn from one class: see training.sides.
    learns_upright = False
    uses_masks = False
    segments = False  # its maps are probabilities that a pixel is defective
    shares_preparation = False  # each process prepares with its share of the images, and they join that
    needs_holdout = False  # calibrate must have unseen images: train.inner_holdout above 0
    int8 = False  # its network is worth exporting in 8 bits

    @property
    def labels(self) -> Labels:
        """What it wants to be told of its training images."""
        return Labels(self.targets, self.uses_masks)

    def prepare(self, batches: Batches) -> None:
        """Once, before the epochs, over the images learnt from: PCA, statistics, banks."""

    def training_loss(self, batch: Batch) -> Batch:
        """Named scalars, `loss` among them; optionally `score` [B, C], detached, for training metrics.

        Not called for a detector without trainable parameters: `prepare` is its whole training.
        """
        raise NotImplementedError

    def training_samples(self, batch: Batch) -> np.ndarray | None:
        """What training makes of a batch, to be looked at: uint8 RGB [H, W, 3]; None if it makes nothing."""
        return None

    def validation(self, batch: Batch) -> Batch:
        """What is watched on unseen images: `score` [B, C] and, where it means something, named losses."""
        return {"score": self(batch["image"])[0]}

    def calibrate(self, batches: Batches) -> None:
        """Once, after the epochs, in evaluation mode, over the inner hold-out: quantiles, score scale."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 3, H, W] -> score [B, C] (raw, higher = more defective), map [B, K, h, w] or None.

        The map covers the whole image, whatever its resolution; a probability where `segments`.
        """
        raise NotImplementedError

    def probability(self, score: torch.Tensor) -> torch.Tensor:
        """Raw score -> [0, 1], strictly increasing; the logistic function unless calibrated otherwise."""
        return torch.sigmoid(score)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Of the optimiser; `lr_scale` in a group multiplies train.lr."""
        return param_groups_weight_decay(self, weight_decay)

    def take_sizes(self, state: dict[str, torch.Tensor]) -> None:
        """Give everything that is sized in `prepare` the size it has in `state`; buffers by default."""
        for name, buffer in list(self.named_buffers()):
            if name in state and state[name].shape != buffer.shape:
                owner, _, attribute = name.rpartition(".")
                empty = torch.empty_like(state[name], dtype=buffer.dtype, device=buffer.device)
                setattr(self.get_submodule(owner), attribute, empty)

    def load_state_dict(self, state: dict[str, torch.Tensor], *arguments, **options):
        self.take_sizes(state)
        return super().load_state_dict(state, *arguments, **options)
