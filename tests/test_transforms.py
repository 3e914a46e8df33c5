"""Rotations without a trace at the border, augmentations seeded per item, TTA members."""

import cv2
import numpy as np
import pytest
import torch

from defects.data.transforms import DIHEDRAL, augment, build_augmentation, rotate_flip, turn
from defects.messages import UserError

STEPS = [
    {"name": "RandomBrightnessContrast", "p": 1.0},
    {"name": "GaussNoise", "p": 0.5},
]


def picture(height=40, width=40):
    return np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(40, 40), (30, 60)])
@pytest.mark.parametrize("angle", [0, 10, 45, 90, 180, 333])
def test_transforms_rotation_keeps_the_frame_and_brings_in_no_black(angle, size):
    turned = rotate_flip(picture(*size), angle, "horizontal")
    assert turned.shape == (*size, 3)
    assert turned.min() >= 55  # reflected, so nothing darker than the picture itself


def test_transforms_rotation_is_counter_clockwise_about_the_centre():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 30] = 255  # to the right of the centre
    for angle, place in ((90, (10, 20)), (180, (20, 10)), (45, (13, 27))):
        row, column = np.unravel_index(rotate_flip(image, angle, "none")[..., 0].argmax(), (41, 41))
        assert abs(row - place[0]) <= 1 and abs(column - place[1]) <= 1


def test_transforms_quarter_turns_lose_nothing():
    image = picture()
    assert (rotate_flip(rotate_flip(image, 90, "none"), 270, "none") == image).all()
    assert (rotate_flip(image, 180, "horizontal") == image[::-1]).all()


@pytest.mark.parametrize("symmetries", list(DIHEDRAL))
def test_transforms_tta_members_are_distinct_and_hold_the_identity(symmetries):
    images = torch.rand(2, 3, 8, 8)
    seen = [turn(images, *member) for member in DIHEDRAL[symmetries]]
    assert any(torch.equal(one, images) for one in seen)
    assert len({one.numpy().tobytes() for one in seen}) == len(seen)


def test_transforms_augmentation_depends_on_seed_epoch_and_row_alone():
    first, second = build_augmentation(STEPS), build_augmentation(STEPS)
    expected = augment(first, 0, 3, 7, image=picture())["image"]
    augment(second, 0, 3, 6, image=picture())  # another worker, with another history
    assert (augment(second, 0, 3, 7, image=picture())["image"] == expected).all()
    others = [augment(first, *key, image=picture())["image"] for key in ((0, 3, 8), (0, 4, 7), (1, 3, 7))]
    assert all((other != expected).any() for other in others)


def test_transforms_no_augmentation_is_no_pipeline():
    assert build_augmentation([]) is None


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "GausNoise"}, "'GausNoise' is no transform"),
        ({"p": 0.5}, "None is no transform"),
        ({"name": "GaussNoise", "strength": 3}, "GaussNoise: .*strength"),
        ({"name": "GaussNoise", "p": 7}, "(?s)GaussNoise: .*p"),
    ],
)
def test_transforms_mistyped_augmentations_are_named(step, message):
    with pytest.raises(UserError, match=message):
        build_augmentation([step])


def test_transforms_opencv_and_torch_turn_the_same_way():
    image = picture()
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    turned = turn(tensor, 1, True)[0].permute(1, 2, 0).numpy()
    assert (turned == rotate_flip(image, 90, "horizontal")).all()
    assert (turned == cv2.rotate(image[:, ::-1], cv2.ROTATE_90_COUNTERCLOCKWISE)).all()
