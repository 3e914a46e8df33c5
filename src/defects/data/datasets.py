"""Data sets and loaders: from rows of the training list, or of images.csv, to batches."""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from defects.config_schema import Config, resolve
from defects.data.added_defects import Paste, Synthetic
from defects.data.black_out import BlackOut
from defects.data.images import covered, read_image, resize_mask, windows
from defects.data.labels import ANY_DEFECT, Labels, has_mask, is_marked, read_masks, target_labels
from defects.data.roi import Roi, load_roi
from defects.data.transforms import augment, augmented_size, build_augmentation, has_crop, rotate_flip
from defects.messages import UserError
from defects.numerics import derive_seed
from defects.processes import own_rows, print_once

Item = int | tuple[int, int]  # row, or epoch and row


class TrainingImage(NamedTuple):
    """An image, and what is known of it."""

    # image uint8 [H, W, 3], where masks are needed mask uint8 [H, W, K], with a region of interest inside
    # uint8 [H, W, 1], 1 where the image is judged
    targets: dict[str, np.ndarray]
    label: np.ndarray  # float32 [C]


class ImageDataset(Dataset):
    """Images of `rows` under `root`: path, label; optional angle, flip; for masks all of images.csv.

    An item is asked for by (epoch, row), or by row alone where nothing is augmented:
    image uint8 [H, W, 3], label float32 [C] (NaN if unknown), row; with `labels.masks` also
    mask uint8 [H, W, K] (1: defect; K classes, or 1) and masked float32 [1] (1: the mask is known); with
    `labels.groups` also group, a number that the images of one group share. With `roi` an image has a fourth
    channel, 255 in the region of interest and 0 outside; what lies outside is in neither image nor mask.
    With `black_out` some items are covered, and labels and mask of those that are hidden by it are 0; with
    `painters` some normal items get a defect, and with it its labels and mask. Where `steps` crop,
    labels are those of the defects that lie in the crop.

    `shown` is (height, width) of augmented images. Raises UserError for crops that do not fit into `size`,
    and if a defect that is cropped has no mask to say what the crop holds of it.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        root: Path,
        size: tuple[int, int],
        steps: list[dict],
        seed: int,
        labels: Labels = ANY_DEFECT,
        black_out: BlackOut | None = None,
        painters: Sequence[Paste | Synthetic] = (),
        bits: int | None = None,
        roi: Roi | None = None,
    ):
        self.root = root
        self.paths = rows["path"].tolist()
        self.labels = target_labels(rows, labels.targets)
        self.classes = labels.classes
        self.has_masks = labels.masks
        self.groups = [number_group(name) for name in rows["group"]] if labels.groups else None
        self.angles = rows.get("angle", pd.Series(0.0, rows.index)).tolist()
        self.flips = rows.get("flip", pd.Series("none", rows.index)).tolist()
        self.size = size
        self.bits = bits
        self.roi = roi
        self.seed = seed
        self.compose = build_augmentation(steps)
        self.is_cropped = self.compose is not None and "mask_path" in rows and has_crop(self.compose)
        self.mask_rows = rows.to_dict("records") if self.has_masks or self.is_cropped else None
        self.black_out = black_out
        self.painters = painters
        self.shown = self._augmented_size()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        return self._sample(item, self._load(item))

    def __getitems__(self, items: list[Item]) -> list[dict[str, Any]]:
        """A batch; in the main process its files are read by several threads (OpenCV lets them run)."""
        if get_worker_info() is not None:
            return [self[item] for item in items]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._load, items))
        return [self._sample(item, image) for item, image in zip(items, images, strict=True)]

    def _augmented_size(self) -> tuple[int, int]:
        if self.compose is None:
            return self.size
        if self.is_cropped:
            unmarked = [row["path"] for row in self.mask_rows if not has_mask(row)]
            if unmarked:
                raise UserError(
                    f"augment crops images, and no mask says whether a crop of {unmarked[0]} holds its "
                    f"defect ({len(unmarked)} such images): add masks, or leave the crop out"
                )
        targets = {"image": np.zeros((*self.size, 3), np.uint8)}
        if self.mask_rows:
            targets["mask"] = self._empty_mask()
        if self.roi is not None:
            targets["inside"] = np.zeros((*self.size, 1), np.uint8)
        return augmented_size(self.compose, **targets)

    def _load(self, item: Item) -> TrainingImage:
        """An item covered, with a defect added to it, rotated and flipped, as planned."""
        epoch, row = item if isinstance(item, tuple) else (0, item)
        label = self.labels[row]
        inside = None
        if self.roi is None:
            targets = {"image": read_image(self.root / self.paths[row], self.size, self.bits)}
        else:
            image, inside = self.roi.read_image(self.paths[row], self.size)
            targets = {"image": image, "inside": inside[..., None].astype(np.uint8)}
        if self.mask_rows is not None:
            targets["mask"] = self._read_mask(self.mask_rows[row], inside)
        if self.black_out is not None:
            cover = self.black_out.cover(epoch, row)
            if cover is not None:
                targets["image"] = covered(targets["image"], cover)
            if self.black_out.hides(epoch, row):
                label = np.zeros_like(label)
                if "mask" in targets:
                    targets["mask"] = self._empty_mask()
        for paint in self.painters:
            painted = paint(epoch, row, targets["image"], inside)
            if painted is not None and inside is not None:
                painted = painted.within(inside, targets["image"])
            if painted is not None:
                targets |= {name: getattr(painted, name) for name in ("image", "mask") if name in targets}
                label = painted.label
                break
        angle = self.angles[row]
        flip = self.flips[row]
        return TrainingImage(
            {name: rotate_flip(pixels, angle, flip) for name, pixels in targets.items()}, label
        )

    def _read_mask(self, row: dict[str, Any], inside: np.ndarray | None) -> np.ndarray:
        masks = read_masks(row, self.root, self.classes)
        if masks is None:
            return self._empty_mask()
        planes = [resize_mask(plane, self.size) for plane in np.moveaxis(masks, 2, 0)]
        if inside is not None:
            planes = [plane & inside for plane in planes]
        return np.stack(planes, axis=2).astype(np.uint8)

    def _empty_mask(self) -> np.ndarray:
        return np.zeros((*self.size, max(1, len(self.classes))), np.uint8)

    def _sample(self, item: Item, image: TrainingImage) -> dict[str, Any]:
        epoch, row = item if isinstance(item, tuple) else (0, item)
        targets, label = image
        if self.compose is not None:
            targets = augment(self.compose, self.seed, epoch, row, **targets)
        if targets["image"].shape[:2] != self.shown:
            raise UserError("augment gives images of several sizes: set p: 1.0 of crops, and one size")
        if self.is_cropped:
            is_present = targets["mask"].any(axis=(0, 1))
            label = np.append(is_present, is_present.any()) if self.classes else is_present
            label = label.astype(np.float32)
        pixels = targets["image"]
        if self.roi is not None:
            pixels = np.concatenate([pixels, 255 * targets["inside"]], axis=2)
        sample = {
            "image": torch.from_numpy(pixels),
            "label": torch.from_numpy(label),
            "row": row,
        }
        if self.has_masks:
            sample["mask"] = torch.from_numpy(targets["mask"])
            sample["masked"] = torch.tensor([float(has_mask(self.mask_rows[row]))])
        if self.groups is not None:
            sample["group"] = self.groups[row]
        return sample


def number_group(name: str) -> int:
    """The same number for a group of folds.csv in whatever table it stands."""
    return zlib.crc32(str(name).encode())


class EpochSampler(Sampler):
    """Yields (epoch, row) in an order that depends on (seed, epoch) alone, so a resumed run repeats it."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        return iter([(self.epoch, row) for row in order.tolist()])


def training_loader(config: Config, rows: pd.DataFrame, labels: Labels = ANY_DEFECT) -> DataLoader:
    """Shuffled, augmented batches of a training list (image_id, angle, flip joined with images.csv)."""
    train = config.train
    data = config.data
    root = resolve(data.root)
    size = data.image_size
    seed = train.seed
    roi = load_roi(data)
    black_out = BlackOut(rows, root, size, train.black_out, seed) if train.black_out else None
    painters: list[Paste | Synthetic] = []
    if train.paste and not any(is_marked(row) for row in rows.to_dict("records")):
        print_once(
            f"note: train.paste={train.paste:g} pastes marked defects, and none of the training images has a "
            "mask: nothing is pasted"
        )
    elif train.paste:
        painters.append(Paste(rows, root, size, train.paste, data.symmetries, labels, seed, data.bits, roi))
    if train.synthetic:
        painters.append(Synthetic(rows, train.synthetic, seed))
    dataset = ImageDataset(
        rows, root, size, config.augment, seed, labels, black_out, painters, data.bits, roi
    )
    sampler = EpochSampler(len(rows), train.seed)
    # A last batch of one image would break batch normalisation.
    return _loader(dataset, train.batch_size, train.workers, sampler, drop_last=len(rows) > train.batch_size)


def plain_loader(config: Config, rows: pd.DataFrame, labels: Labels = ANY_DEFECT) -> DataLoader:
    """Batches of images in the order of `rows`, never augmented."""
    data = config.data
    root = resolve(data.root)
    roi = load_roi(data)
    dataset = ImageDataset(rows, root, data.image_size, [], 0, labels, bits=data.bits, roi=roi)
    return _loader(dataset, config.infer.batch_size, config.train.workers)


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict:
    """A loader's batch as detectors take it: on the device, image as by `as_input`.

    A batch without images, of their features, is moved alone.
    """
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    if "image" not in batch:
        return batch
    if "mask" in batch:
        batch["mask"] = batch["mask"].permute(0, 3, 1, 2).float()
    return batch | {"image": as_input(batch["image"])}


class DeviceBatches:
    """The images of `rows` for `Detector.calibrate`, as often as needed.

    For `Detector.prepare` `in_windows`, those of inference, one batch for each. `share` (k, n): of every n
    batches the k-th alone; `row` then still numbers the images, or windows, of all.
    """

    def __init__(
        self,
        config: Config,
        rows: pd.DataFrame,
        device: torch.device,
        labels: Labels = ANY_DEFECT,
        in_windows: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        self.own = torch.from_numpy(own_rows(len(rows), config.infer.batch_size, *share))
        self.loader = plain_loader(config, rows.iloc[self.own], labels)
        self.device = device
        self.windows = windows(config.data.image_size, config.infer.window if in_windows else None)
        self.images = len(rows) * len(self.windows)

    def __len__(self) -> int:
        return len(self.loader) * len(self.windows)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            batch = to_device(batch, self.device)
            numbers = self.own[batch["row"].cpu()] * len(self.windows)
            for number, place in enumerate(self.windows):
                part = {name: batch[name][..., *place] for name in ("image", "mask") if name in batch}
                yield batch | part | {"row": numbers + number}


def as_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1]; channels-last memory comes for free.

    A fourth channel, not 0 in the region of interest, becomes 1 there and 0 outside. What lies outside gets
    the mean colour of what lies inside, whatever it was: no network sees it, and the edge is faint.
    """
    values = images.permute(0, 3, 1, 2).float() / 255
    if images.shape[3] == 3:
        return values
    inside = (values[:, 3:] > 0).float()
    colours = values[:, :3] * inside
    mean = colours.sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.cat([colours + (1 - inside) * mean, inside], 1)


def _loader(
    dataset: ImageDataset,
    batch_size: int,
    workers: int,
    sampler: Sampler | None = None,
    drop_last: bool = False,
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_one_thread,
        persistent_workers=workers > 0,  # epochs come with the items, so workers can stay
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(0),  # or every iterator would draw from the global one
    )


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
