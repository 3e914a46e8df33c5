"""Scoring: the one path by which held-out, test and single images get their scores and maps."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config import InferConfig
from defects.data.datasets import as_input
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.data.windows import windows
from defects.models import Detector

Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Scorer(nn.Module):
    """A detector as it scores: images uint8 [B, H, W, 3] -> raw score [B, C], map [B, K, h, w] or None.

    Averaged over the label-preserving members of the dihedral group if `infer.tta`, from overlapping windows
    of images larger than `infer.window`; the longer side of a map is at most `infer.map_size`. What is
    exported is this very module.
    """

    def __init__(self, detector: Detector, infer: InferConfig, symmetries: str):
        super().__init__()
        self.detector, self.infer = detector, infer
        self.members = DIHEDRAL[symmetries] if infer.tta else [(0, False)]

    def count_passes(self, size: tuple[int, int]) -> int:
        """How often the detector runs on an image of `size` (height, width): for each window of each view."""
        sizes = [size[::-1] if turns % 2 else size for turns, _ in self.members]
        return sum(len(windows(each, self.infer.window)) for each in sizes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        images = as_input(images)
        scores, maps = zip(*(self._turned(images, member) for member in self.members), strict=True)
        score = torch.stack(scores).mean(dim=0)
        return score, None if maps[0] is None else torch.stack(maps).mean(dim=0)

    def _turned(
        self, images: torch.Tensor, member: tuple[int, bool]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        score, maps = _score_windows(self.detector, turn(images, *member), self.infer.window)
        if maps is None:
            return score, None
        return score, _reduced(turn_back(maps, *member), self.infer.map_size)


@torch.inference_mode()
def score_batches(scorer: Scorer, loader: DataLoader, accelerator: Accelerator) -> Iterator[Scored]:
    """Yields (row [B], raw score [B, C], map [B, K, h, w] or None) batch by batch, on the CPU.

    In full precision: a bf16 logit near 5 has steps of 0.03, which would tie images. Memory does not grow
    with the number of images.
    """
    scorer.eval()
    for batch in tqdm(loader, "scoring", leave=False, disable=None):
        images = batch["image"].to(accelerator.device, non_blocking=True)
        scores, maps = scorer(images)
        parts = [batch["row"].to(accelerator.device), scores] + ([] if maps is None else [maps])
        gathered = [part.cpu() for part in accelerator.gather_for_metrics(parts)]
        yield gathered[0], gathered[1], None if maps is None else gathered[2]


def _score_windows(
    detector: Detector, images: torch.Tensor, window: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The highest score of all windows, their maps averaged where they overlap; one window may be all."""
    size = images.shape[2:]
    grid = windows(size, window)
    if len(grid) == 1:
        return detector(images)
    found = [(rows, columns, *detector(images[..., rows, columns])) for rows, columns in grid]
    score = torch.stack([each[2] for each in found]).amax(0)
    if found[0][3] is None:
        return score, None
    total = images.new_zeros(images.shape[0], found[0][3].shape[1], *size)
    times = images.new_zeros(size)
    for rows, columns, _, maps in found:
        part = total[..., rows, columns]
        part += functional.interpolate(maps.float(), part.shape[2:], mode="bilinear")
        times[rows, columns] += 1
    return score, total / times


def _reduced(maps: torch.Tensor, size: int) -> torch.Tensor:
    longer = max(maps.shape[2:])
    if longer <= size:
        return maps
    height, width = (max(1, round(side * size / longer)) for side in maps.shape[2:])
    return functional.interpolate(maps, (height, width), mode="area")
