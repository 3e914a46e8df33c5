"""Scoring: the one path by which held-out, test and single images get their scores and maps."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config import InferConfig
from defects.data.datasets import as_input
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.models import Detector

Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@torch.inference_mode()
def score_batches(
    detector: Detector, loader: DataLoader, infer: InferConfig, symmetries: str, accelerator: Accelerator
) -> Iterator[Scored]:
    """Yields (row [B], raw score [B, C], map [B, C, h, w] or None) batch by batch, on the CPU.

    Averaged over the label-preserving members of the dihedral group if `infer.tta`; the longer side of a
    map is at most `infer.map_size`. Memory does not grow with the number of images.
    """
    detector.eval()
    members = DIHEDRAL[symmetries] if infer.tta else [(0, False)]
    for batch in tqdm(loader, "scoring", leave=False, disable=None):
        images = as_input(batch["image"].to(accelerator.device, non_blocking=True))
        # In full precision: a bf16 logit near 5 has steps of 0.03, which would tie images.
        scored = [_score_turned(detector, images, member, infer.map_size) for member in members]
        scores = torch.stack([score for score, _ in scored]).mean(dim=0)
        maps = None if scored[0][1] is None else torch.stack([each for _, each in scored]).mean(dim=0)
        parts = [batch["row"].to(accelerator.device), scores] + ([] if maps is None else [maps])
        gathered = [part.cpu() for part in accelerator.gather_for_metrics(parts)]
        yield gathered[0], gathered[1], None if maps is None else gathered[2]


def _score_turned(
    detector: Detector, images: torch.Tensor, member: tuple[int, bool], map_size: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    score, maps = detector(turn(images, *member))
    return score, None if maps is None else _reduced(turn_back(maps, *member), map_size)


def _reduced(maps: torch.Tensor, size: int) -> torch.Tensor:
    longer = max(maps.shape[2:])
    if longer <= size:
        return maps
    height, width = (max(1, round(side * size / longer)) for side in maps.shape[2:])
    return functional.interpolate(maps, (height, width), mode="area")
