"""Training images of detectors with a frozen backbone: embedded once, learnt from many times."""

from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from defects.config_schema import TrainConfig
from defects.data.datasets import EpochSampler, to_device
from defects.models import Detector
from defects.processes import print_once

POOL_BYTES = 2**30  # that the embedded images may take


class EmbeddedImages(Dataset):
    """What `Detector.embed` made of images, asked for by (epoch, row); float tensors are kept as float16."""

    def __init__(self, values: dict[str, torch.Tensor]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values["label"])

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {name: tensor[item[1]] for name, tensor in self.values.items()}


@torch.no_grad()
def embed_training_images(
    detector: Detector, loader: DataLoader, device: torch.device, train: TrainConfig
) -> DataLoader:
    """Batches of what the detector makes of `pool_size` images of the training loader.

    Of fewer if POOL_BYTES hold no more, or if no more are learnt from. They are the first ones of its epochs,
    so that classes, rotations, pasted and drawn defects come as often as there. Every process embeds all.
    """
    detector.eval()
    images = min(detector.pool_size, (train.steps or detector.pool_size) * loader.batch_size)
    values: dict[str, torch.Tensor] = {}
    filled = 0
    progress = tqdm(_iterate_epochs(loader), "features", leave=False, disable=None)
    for batch in progress:
        embedded = {name: _pack(value) for name, value in detector.embed(to_device(batch, device)).items()}
        if not values:
            image_bytes = sum(value[0].nbytes for value in embedded.values())
            fitting = max(loader.batch_size, POOL_BYTES // image_bytes)
            if fitting < images:
                print_once(f"note: {fitting} training images in place of {images} fit into 1 GiB of features")
            images = min(images, fitting)
            values = {name: value.new_empty(images, *value.shape[1:]) for name, value in embedded.items()}
        part = slice(filled, min(images, filled + len(embedded["label"])))
        for name, value in embedded.items():
            values[name][part] = value[: part.stop - part.start]
        filled = part.stop
        if filled == images:
            break
    progress.close()
    return DataLoader(
        EmbeddedImages(values),
        loader.batch_size,
        sampler=EpochSampler(images, train.seed),
        drop_last=images > loader.batch_size,
        generator=torch.Generator().manual_seed(0),  # or every iterator would draw from the global one
    )


def _iterate_epochs(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the loader's epochs, one after the other, without an end."""
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def _pack(values: torch.Tensor) -> torch.Tensor:
    """Maps as float16 on the CPU; what is too large for that becomes the largest value."""
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half().cpu() if values.ndim == 4 else values.cpu()
