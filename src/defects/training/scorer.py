"""Scoring: the one path by which held-out, test and single images get their scores."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.data.datasets import as_input
from defects.data.transforms import DIHEDRAL, turn
from defects.models import Detector


def tta_members(symmetries: str, tta: bool) -> list[tuple[int, bool]]:
    """The label-preserving dihedral members to average over; the identity alone without TTA."""
    return DIHEDRAL[symmetries] if tta else [(0, False)]


@torch.inference_mode()
def score_batches(
    detector: Detector, loader: DataLoader, members: list[tuple[int, bool]], accelerator: Accelerator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (row [B], raw score [B, C]) batch by batch, on the CPU, so memory does not grow."""
    detector.eval()
    for batch in tqdm(loader, "scoring", leave=False, disable=None):
        images = as_input(batch["image"].to(accelerator.device, non_blocking=True))
        # In full precision: a bf16 logit near 5 has steps of 0.03, which would tie images.
        scores = torch.stack([detector(turn(images, *member))[0] for member in members]).mean(dim=0)
        rows, scores = accelerator.gather_for_metrics((batch["row"].to(accelerator.device), scores))
        yield rows.cpu(), scores.cpu()
