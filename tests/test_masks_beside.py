"""Masks among images: told apart by name and by what is in the files, or refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import defective, texture, write_png

from defects.data.mask_matching import split_off_masks
from defects.messages import UserError


def _write(path: Path, image: np.ndarray, *options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image, list(options))[1].tobytes())
    return path


def _picture(path: Path, seed: int = 0) -> Path:
    return _write(path, texture(seed, 64))


def _mask(path: Path, seed: int = 0) -> Path:
    return _write(path, defective(seed, 64)[1])


def _split(folder: Path, **options):
    return split_off_masks(sorted(path for path in folder.rglob("*") if path.is_file()), "bad", **options)


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        _split(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("exp1.jpg", "exp1.png"),
        ("a.png", "a_mask.png"),
        ("a.png", "a_GT.bmp"),
        ("a.png", "mask_a.png"),
        ("a.jpg", "a.jpg.png"),
        ("a.png", "a_mask.jpg"),
        ("a.png", "masks/a.png"),
        ("images/a.png", "masks/a_mask.png"),
        ("a.png", "defect_masks/a.png"),
        ("a.png", "ground truth/a.png"),
        ("a.png", "마스크/a.png"),
        ("a.png", "masks/a_1.png"),
        ("a.png", "masks/a/000.png"),
        ("a.jpg", "masks/a.jpg.png"),
        ("JPEGImages/a.png", "SegmentationClass/a.png"),
        ("images/scratch/a.png", "masks/scratch/a.png"),
        ("0001/img.png", "0001/label.png"),
        ("lot.1.v2.jpg", "lot.1.v2.png"),
    ],
)
def test_masks_are_told_from_images(tmp_path, image, mask):
    image, mask = _picture(tmp_path / image), _mask(tmp_path / mask)
    other = _picture(tmp_path / "other.png", 1)
    found = _split(tmp_path)
    assert set(found.images) == {image, other}
    assert found.masks == {image: [mask]}


@pytest.mark.parametrize(
    "kind", ["two levels", "empty", "labels", "colours", "alpha", "soft", "16 bits", "lossy"]
)
def test_masks_of_all_kinds(tmp_path, kind):
    mask = defective(3, 64)[1]
    stored = {
        "two levels": mask,
        "empty": 0 * mask,
        "labels": (mask > 0).astype(np.uint8) * 3,
        "colours": np.dstack([0 * mask, 0 * mask, mask]),
        "alpha": np.dstack([mask | 255] * 3 + [mask]),
        "soft": cv2.GaussianBlur(mask, (0, 0), 0.7),
        "16 bits": mask.astype(np.uint16) * 257,
        "lossy": mask,
    }[kind]
    image = _picture(tmp_path / "a.bmp")
    mask = _write(tmp_path / ("a.jpg" if kind == "lossy" else "a.png"), stored)
    assert _split(tmp_path).masks == {image: [mask]}


@pytest.mark.parametrize("second", ["a.jpg", "a_label.png"])
def test_two_pictures_with_one_name_are_two_pictures(tmp_path, second):
    paths = {_picture(tmp_path / "a.png"), _picture(tmp_path / second, 1)}
    found = _split(tmp_path)
    assert set(found.images) == paths
    assert not found.masks


def test_dark_flat_pictures_are_no_masks(tmp_path):
    noise = np.random.default_rng(0)
    for name in ("a.png", "a.bmp"):
        _write(tmp_path / name, noise.normal(20, 4, (64, 64)).clip(0, 255).astype(np.uint8))
    assert len(_split(tmp_path).images) == 2


def test_a_mask_whose_image_is_missing_is_no_image(tmp_path):
    image, mask = _picture(tmp_path / "a.png"), _mask(tmp_path / "a_mask.png")
    lone = _mask(tmp_path / "b_mask.png", 1)
    found = _split(tmp_path)
    assert (found.images, found.masks, found.orphans) == ([image], {image: [mask]}, [lone])


def test_a_mask_in_a_folder_of_masks_whose_image_is_missing_is_no_image(tmp_path):
    image, mask = _picture(tmp_path / "a_1.png"), _mask(tmp_path / "label_png/a_1.png")
    lone = _mask(tmp_path / "label_png/a_2.png", 1)
    found = _split(tmp_path)
    assert (found.images, found.masks, found.orphans) == ([image], {image: [mask]}, [lone])


def test_blank_pictures_below_a_folder_with_a_word_for_masks_stay_pictures(tmp_path):
    folder = tmp_path / "labels 2024/bad"
    image, mask = _picture(folder / "a.png"), _mask(folder / "a_mask.png")
    blank = _write(folder / "b.png", np.zeros((64, 64), np.uint8))
    found = _split(folder)
    assert (found.images, found.masks, found.orphans) == ([image, blank], {image: [mask]}, [])


def test_pictures_in_a_folder_that_is_called_like_masks_stay_pictures(tmp_path):
    paths = {_picture(tmp_path / "a.png"), _picture(tmp_path / "annotations/a.png", 1)}
    assert set(_split(tmp_path).images) == paths


def test_pictures_that_are_called_masks_stay_pictures_where_none_is_one(tmp_path):
    paths = [_picture(tmp_path / f"{i}_mask.png", i) for i in range(3)]
    assert _split(tmp_path).images == paths


def test_several_masks_of_one_image(tmp_path):
    image = _picture(tmp_path / "a.jpg")
    masks = [_mask(tmp_path / name, i) for i, name in enumerate(["a_mask1.png", "a_mask2.png"])]
    assert _split(tmp_path).masks == {image: masks}


def test_what_cannot_be_told_is_refused_with_both_paths(tmp_path):
    cases = {
        "both masks": [_mask(tmp_path / "1/a.png"), _mask(tmp_path / "1/a.bmp", 1)],
        "other size": [
            _picture(tmp_path / "2/a.jpg"),
            write_png(tmp_path / "2/a.png", np.eye(9, dtype=np.uint8)),
        ],
        "a picture": [_picture(tmp_path / "3/a.png"), _picture(tmp_path / "3/a_mask.png", 1)],
    }
    for number, paths in enumerate(cases.values(), 1):
        message = _refused(tmp_path / str(number))
        assert all(str(path) in message for path in paths)
        assert "data.folders.masks" in message


def test_a_mask_may_look_like_anything_where_masks_are_said_to_lie(tmp_path):
    image, mask = _picture(tmp_path / "a.png"), _picture(tmp_path / "a_mask.png", 1)
    assert _split(tmp_path, are_masks_here=True).masks == {image: [mask]}


def test_broken_files_are_left_to_be_named_later(tmp_path):
    _picture(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(b"")
    assert len(_split(tmp_path).images) == 2
