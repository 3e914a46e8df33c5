"""Which mask belongs to which image: by names, and among images by pixels too, or refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import defective, texture, write_png

from defects.data.mask_matching import match_masks, split_off_masks
from defects.messages import UserError


def _matched(images: list[str], masks: list[str]) -> dict[str, list[str]]:
    """The masks of those images that have any."""
    matches = match_masks(images, masks)
    masks_of = {}
    for image, numbers in zip(images, matches.of_image, strict=True):
        if numbers:
            masks_of[image] = [masks[number] for number in numbers]
    return masks_of


@pytest.mark.parametrize(
    "mask",
    [
        "a.png",
        "a.bmp",
        "a_mask.png",
        "a-mask.png",
        "a.mask.png",
        "a mask.png",
        "a_MASK.PNG",
        "a_gt.png",
        "a_GT.png",
        "a_label.bmp",
        "a_ground_truth.png",
        "a.jpg.png",
        "a.jpg_mask.png",
        "a/000.png",
        "a/mask.png",
        "a_mask/1.png",
        "a.jpg/1.png",
        "a_0.png",
        "a-1.png",
        "a (2).png",
        "a_mask1.png",
        "a_mask_1.png",
        "a_mask (1).png",
        "a_1_mask.png",
        "A_mask.png",
        "mask_a.png",
        "GT-a.png",
        "label_a_1.png",
    ],
)
def test_match_masks_by_all_kinds_of_names(mask):
    assert _matched(["a.jpg", "b.jpg"], [mask]) == {"a.jpg": [mask]}


@pytest.mark.parametrize(
    "mask", ["c.png", "a1.png", "mask_of_a.png", "masks.png", "ab.png", "a_masked.png", "x/y.png"]
)
def test_match_masks_of_no_image(mask):
    matches = match_masks(["a.jpg", "b.jpg"], [mask])
    assert matches.orphans == [0]
    assert matches.of_image == [[], []]


def test_match_masks_of_several_regions():
    masks = ["a_0.png", "a_1.png", "b/000.png", "b/001.png", "c.png", "c_mask.png"]
    assert _matched(["a.png", "b.png", "c.png"], masks) == {
        "a.png": ["a_0.png", "a_1.png"],
        "b.png": ["b/000.png", "b/001.png"],
        "c.png": ["c.png", "c_mask.png"],
    }


def test_match_masks_of_numbered_images():
    """part_3.png is the mask of an image that is missing, not a region of part.png."""
    matches = match_masks(["part.png", "part_1.png", "part_2.png"], ["part_1.png", "part_3.png", "part.png"])
    assert matches.of_image == [[2], [0], []]
    assert matches.orphans == [1]


def test_match_masks_in_the_same_sub_folders():
    images = ["line 1/000.png", "line 2/000.png"]
    masks = ["line 2/000_mask.png", "line 1/000.png"]
    assert _matched(images, masks) == {images[0]: [masks[1]], images[1]: [masks[0]]}


def test_match_masks_where_images_or_masks_have_no_sub_folders():
    assert _matched(["a.png", "b.png"], ["scratch/a.png", "dent/a_mask.png", "dent/b.png"]) == {
        "a.png": ["scratch/a.png", "dent/a_mask.png"],
        "b.png": ["dent/b.png"],
    }
    assert _matched(["x/a.png", "y/b.png"], ["a.png", "b.png"]) == {
        "x/a.png": ["a.png"],
        "y/b.png": ["b.png"],
    }


def test_match_masks_with_a_copy_in_a_sub_folder():
    matches = match_masks(["a.png", "b.png"], ["a.png", "old/a.png", "old/b.png"])
    assert matches.of_image == [[0], [2]]
    assert matches.orphans == [1]


def test_match_masks_of_a_missing_sub_folder():
    matches = match_masks(["line 1/a.png"], ["line 1/a.png", "line 2/a.png"])
    assert matches.of_image == [[0]]
    assert matches.orphans == [1]


def test_match_masks_of_two_images_with_one_stem():
    matches = match_masks(["a.jpg", "a.png"], ["a.bmp", "a.jpg.png"])
    assert matches.ambiguous == {0: [0, 1]}
    assert matches.of_image == [[1], []]


def test_match_masks_by_upper_and_lower_case():
    assert _matched(["a.png", "A.png"], ["A_mask.png", "a.png"]) == {
        "a.png": ["a.png"],
        "A.png": ["A_mask.png"],
    }


def test_match_masks_of_both_spellings_of_accents():
    assert _matched(["u\u0308.png"], ["ü_mask.png"]) == {"u\u0308.png": ["ü_mask.png"]}


def test_match_masks_of_names_with_dots():
    assert _matched(["lot.1.v2.png", "lot.1.png"], ["lot.1.v2_mask.PNG"]) == {
        "lot.1.v2.png": ["lot.1.v2_mask.PNG"]
    }


# --- masks among images ----------------------------------------------------------------------------------


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
def test_split_off_masks_by_all_kinds_of_names(tmp_path, image, mask):
    image_path = _picture(tmp_path / image)
    mask_path = _mask(tmp_path / mask)
    second_image_path = _picture(tmp_path / "other.png", 1)
    split = _split(tmp_path)
    assert set(split.images) == {image_path, second_image_path}
    assert split.masks == {image_path: [mask_path]}


@pytest.mark.parametrize(
    "kind", ["two levels", "empty", "labels", "colours", "alpha", "soft", "16 bits", "lossy"]
)
def test_split_off_masks_of_all_kinds(tmp_path, kind):
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
def test_split_off_masks_of_two_pictures_with_one_name(tmp_path, second):
    paths = {_picture(tmp_path / "a.png"), _picture(tmp_path / second, 1)}
    split = _split(tmp_path)
    assert set(split.images) == paths
    assert not split.masks


def test_split_off_masks_of_dark_flat_pictures(tmp_path):
    noise = np.random.default_rng(0)
    for name in ("a.png", "a.bmp"):
        _write(tmp_path / name, noise.normal(20, 4, (64, 64)).clip(0, 255).astype(np.uint8))
    assert len(_split(tmp_path).images) == 2


def test_split_off_masks_whose_image_is_missing(tmp_path):
    image = _picture(tmp_path / "a.png")
    mask = _mask(tmp_path / "a_mask.png")
    lone = _mask(tmp_path / "b_mask.png", 1)
    split = _split(tmp_path)
    assert (split.images, split.masks, split.orphans) == ([image], {image: [mask]}, [lone])


def test_split_off_masks_in_a_folder_whose_image_is_missing(tmp_path):
    image = _picture(tmp_path / "a_1.png")
    mask = _mask(tmp_path / "label_png/a_1.png")
    lone = _mask(tmp_path / "label_png/a_2.png", 1)
    split = _split(tmp_path)
    assert (split.images, split.masks, split.orphans) == ([image], {image: [mask]}, [lone])


def test_split_off_masks_below_a_folder_with_a_mask_word(tmp_path):
    folder = tmp_path / "labels 2024/bad"
    image = _picture(folder / "a.png")
    mask = _mask(folder / "a_mask.png")
    blank = _write(folder / "b.png", np.zeros((64, 64), np.uint8))
    split = _split(folder)
    assert (split.images, split.masks, split.orphans) == ([image, blank], {image: [mask]}, [])


def test_split_off_masks_of_pictures_in_a_folder_with_a_mask_word(tmp_path):
    paths = {_picture(tmp_path / "a.png"), _picture(tmp_path / "annotations/a.png", 1)}
    assert set(_split(tmp_path).images) == paths


def test_split_off_masks_of_pictures_that_are_named_masks(tmp_path):
    paths = [_picture(tmp_path / f"{i}_mask.png", i) for i in range(3)]
    assert _split(tmp_path).images == paths


def test_split_off_masks_several_of_one_image(tmp_path):
    image = _picture(tmp_path / "a.jpg")
    masks = [_mask(tmp_path / name, i) for i, name in enumerate(["a_mask1.png", "a_mask2.png"])]
    assert _split(tmp_path).masks == {image: masks}


def test_split_off_masks_refuses_what_cannot_be_told(tmp_path):
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


def test_split_off_masks_that_look_like_pictures(tmp_path):
    image = _picture(tmp_path / "a.png")
    mask = _picture(tmp_path / "a_mask.png", 1)
    assert _split(tmp_path, are_masks_here=True).masks == {image: [mask]}


def test_split_off_masks_ignores_broken_files(tmp_path):
    _picture(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(b"")
    assert len(_split(tmp_path).images) == 2
