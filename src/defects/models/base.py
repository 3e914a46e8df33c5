"""The contract that every detector keeps, and what detectors of normal images have in common."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional

from defects.data.images import windows
from defects.data.labels import DEFECT, Labels
from defects.models.inside import lower_empty
from defects.models.statistics import exact_quantile

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

    A batch holds image [B, 3, H, W] float32 in [0, 1], with a fourth channel (see models.inside) where the
    data have a region of interest, label [B, C] (1: defective); for a detector that
    `uses_masks` also mask [B, K, H, W] (1: defect) and masked [B, 1] (1: the mask is known, as it is for
    every normal image); for one that `uses_groups` also group [B], a number for each group of folds.csv.
    C counts `targets`, the last of which is whether there is any defect;
    K their classes, or is 1.

    What a detector is built from are plain arguments: those before the `*` of its `__init__` are named as in
    `defects.models.build_detector`, which takes them from the configuration; those after it are the
    detector's own `model.options`, checked against their types, and all have defaults.

    Randomness comes from torch's and numpy's global generators, which are seeded for every epoch.
    Buffers may take their size in `prepare`: loading a checkpoint brings it back.
    """

    targets: tuple[str, ...] = (DEFECT,)  # what its scores answer; data.targets if it tells classes apart

    # --- what it needs; a detector whose options change that sets it for itself in __init__ ---
    learns_from: Literal["normal", "both"] = "both"  # classes that prepare and training_loss are given
    # Whether training_loss is given each image once and as it will be scored, not in the rotations and flips
    # of the training list. Only for detectors that learn from one class: see training.fold.
    learns_upright = False
    uses_masks = False
    uses_groups = False
    needs_holdout = False  # calibrate must have unseen images: train.inner_holdout above 0
    uses_tta = True  # infer.tta where the configuration leaves that open; of the class, whatever its options
    # Whether training images are given to `embed` once, and training_loss is given what that makes of them.
    trains_on_features = False
    pool_size = 0  # so many images, augmented ones, if trains_on_features
    shares_preparation = False  # each process prepares with its share of the images, and they join that

    # --- what it gives ---
    segments = False  # its maps are probabilities that a pixel is defective
    int8 = False  # its network is worth exporting in 8 bits

    # Sections of model.options that other programs read, such as src/distill.py, not the detector.
    other_options: dict[str, type] = {}

    @property
    def labels(self) -> Labels:
        """The labels that its training images come with."""
        return Labels(self.targets, self.uses_masks, self.uses_groups)

    def outside_images(self) -> dict[str, Path]:
        """Folders of images beyond the data set that it learns from, by the setting that names them."""
        return {}

    def prepare(self, batches: Batches) -> None:
        """Once, before the epochs, over the images learnt from: PCA, statistics, banks."""

    def embed(self, batch: Batch) -> Batch:
        """What training_loss takes in place of a batch if `trains_on_features`: tensors [B, ...]."""
        return batch

    def training_loss(self, batch: Batch) -> Batch:
        """Named scalars, `loss` among them; optionally `score` [B, C], detached, for training metrics.

        Not called for a detector without trainable parameters: `prepare` is its whole training.
        """
        raise NotImplementedError

    def training_samples(self, batch: Batch) -> np.ndarray | None:
        """What training makes of a batch, as a picture: uint8 RGB [H, W, 3]; None if it makes nothing."""
        return None

    def validation(self, batch: Batch) -> Batch:
        """What is measured on unseen images: `score` [B, C] and, where it means something, named losses."""
        return {"score": self(batch["image"])[0]}

    def calibrate(self, batches: Batches) -> None:
        """Once, after the epochs, in evaluation mode, over the inner hold-out: quantiles, score scale."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, 3 or 4, H, W] -> score [B, C] (raw, higher = more defective), map [B, K, h, w] or None.

        Of the region of interest alone, if there is a fourth channel; maps may hold anything outside. The map
        covers the whole image, whatever its resolution; a probability where `segments`.
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


class AnomalyDetector(Detector):
    """Learns from normal images; its score is calibrated on held-out normal ones.

    The threshold, named `cut` as in checkpoints, is the score that a share `expected_fpr` of the held-out
    normal images reaches, `spread` the distance from their median to it. Both are exact empirical quantiles.
    Images larger than `window` (height, width) are scored in windows of that size.
    """

    learns_from = "normal"
    # Rotated normal images would be learnt as normal, at the expense of the upright ones that are scored.
    learns_upright = True
    needs_holdout = True
    uses_tta = False  # calibrated on images as they are, which an average over views would not fit

    def __init__(self, expected_fpr: float, window: tuple[int, int] | None):
        super().__init__()
        self.expected_fpr = expected_fpr
        self.window = window
        self.register_buffer("cut", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def calibrate(self, batches: Batches) -> None:
        scores = []
        for batch in batches:
            windows_of_batch = self.split_windows(batch["image"])
            in_windows = torch.stack([lower_empty(self(window)[0], window) for window in windows_of_batch])
            scores.append(in_windows.amax(0).flatten().cpu())
        self.set_scale(torch.cat(scores))

    def split_windows(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The windows in which images [B, C, H, W] are scored: their highest score is that of the image."""
        return [images[..., rows, columns] for rows, columns in windows(images.shape[2:], self.window)]

    def set_scale(self, scores: torch.Tensor) -> None:
        """`cut` and `spread` from the raw scores [N] of held-out normal images."""
        threshold = exact_quantile(scores, 1 - self.expected_fpr)
        median = exact_quantile(scores, 0.5)
        self.cut.copy_(threshold)
        # Never zero: a handful of hold-out images may all score alike.
        self.spread.copy_((threshold - median).clamp(min=threshold.abs() * 1e-3 + 1e-12))

    def probability(self, score: torch.Tensor) -> torch.Tensor:
        """0.5 at the threshold, linear near it, logarithmic far away: no two defects saturate at 1."""
        return torch.sigmoid(torch.asinh((score - self.cut) / self.spread))


def pad_to_multiple(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Images [B, 3, H, W] with their border repeated below and on the right up to multiples of `pixels`."""
    height, width = images.shape[2:]
    return functional.pad(images, (0, -width % pixels, 0, -height % pixels), mode="replicate")
