"""Transforms of images: the planned rotation-flip copies, the seeded augmentations, the TTA members."""

import warnings
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from albumentations.augmentations.crops import transforms as crops

from defects.messages import UserError
from defects.numerics import derive_seed

DIHEDRAL = {
    "rotations": [(turns, flip) for flip in (False, True) for turns in range(4)],
    "dihedral": [(turns, flip) for flip in (False, True) for turns in range(4)],
    "flips": [(turns, flip) for flip in (False, True) for turns in (0, 2)],
    "none": [(0, False)],
}  # symmetries -> (quarter turns, horizontal flip before them)


def rotate_flip(image: np.ndarray, angle: float, flip: str) -> np.ndarray:
    """Flip uint8 [H, W, C], then rotate it counter-clockwise by `angle` degrees within the same frame.

    What comes in from outside the frame is reflected: black corners would mark the rotated class.
    """
    if flip == "horizontal":
        image = np.ascontiguousarray(image[:, ::-1])
    if angle == 0:
        return image
    height, width = image.shape[:2]
    if angle % 180 == 0 or (angle % 90 == 0 and height == width):
        return np.ascontiguousarray(np.rot90(image, round(angle / 90)))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    rotated = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return rotated.reshape(image.shape)  # OpenCV drops a single channel


def turn(images: torch.Tensor, turns: int, flip: bool) -> torch.Tensor:
    """A member of the dihedral group on [B, C, H, W]; odd turns swap height and width."""
    if not (turns or flip):
        return images
    rotated = torch.rot90(images.flip(3) if flip else images, turns, dims=(2, 3))
    return rotated.contiguous(memory_format=torch.channels_last)  # rot90 loses it, convolutions want it


def turn_back(maps: torch.Tensor, turns: int, flip: bool) -> torch.Tensor:
    """Undo `turn`, so that maps [B, C, h, w] of rotated images lie on the images again."""
    maps = torch.rot90(maps, -turns, dims=(2, 3))
    return maps.flip(3) if flip else maps


def build_augmentation(steps: list[dict[str, Any]]) -> albumentations.Compose | None:
    """Albumentations by name: [{name: GaussNoise, p: 0.3, ...}]. UserError for unknown names or arguments.

    One of several: {name: OneOf, p: 1.0, transforms: [{name: GaussNoise, p: 0.3}, ...]}.
    """
    return albumentations.Compose([_step(step) for step in steps]) if steps else None


def has_crop(step: albumentations.Compose | albumentations.BasicTransform) -> bool:
    """Whether a step crops images."""
    parts = getattr(step, "transforms", ())
    return type(step).__module__ == crops.__name__ or any(has_crop(part) for part in parts)


def augmented_size(compose: albumentations.Compose, **targets: np.ndarray) -> tuple[int, int]:
    """(height, width) that augmentation leaves of such targets. UserError if it cannot be done on them."""
    height, width = targets["image"].shape[:2]
    try:
        return augment(compose, 0, **targets)["image"].shape[:2]
    except (crops.CropSizeError, ValueError, RuntimeError) as error:
        raise UserError(f"augment on images of {height}x{width} (data.image_size): {error}") from None


def augment(compose: albumentations.Compose, *key: int, **targets: np.ndarray) -> dict[str, np.ndarray]:
    """Augment image (and mask, and inside) with a generator of this item alone, key = (seed, epoch, row).

    A seed given once to Compose would repeat itself in every worker and every epoch.
    """
    compose.set_random_seed(derive_seed(*key))
    if "inside" not in targets:
        return compose(**targets)
    # As one more plane of the mask: an added target would need a Compose of its own.
    planes = [targets[name] for name in ("mask", "inside") if name in targets]
    augmented = compose(image=targets["image"], mask=np.concatenate(planes, axis=2))
    image = augmented["image"]
    masks = augmented["mask"].reshape(*image.shape[:2], -1)
    parts = {"mask": masks[..., :-1], "inside": masks[..., -1:]}
    return {"image": image} | {name: part for name, part in parts.items() if name in targets}


def _step(step: dict[str, Any]) -> albumentations.BasicTransform | albumentations.OneOf:
    name = step.get("name")
    arguments = {key: value for key, value in step.items() if key != "name"}
    kind = getattr(albumentations, str(name), None)
    if not (
        isinstance(kind, type) and issubclass(kind, (albumentations.BasicTransform, albumentations.OneOf))
    ):
        raise UserError(f"augment: {name!r} is no transform of albumentations")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it only warns of unknown arguments
        try:
            if "transforms" in arguments:
                arguments["transforms"] = [_step(inner) for inner in arguments["transforms"]]
            return kind(**arguments)
        except (UserWarning, TypeError, ValueError) as error:
            raise UserError(f"augment: {name}: {error}") from None
