"""Which mask belongs to which image, by their names."""

import pytest

from defects.data.mask_matching import match_masks


def _matched(images: list[str], masks: list[str]) -> dict[str, list[str]]:
    names = match_masks(images, masks)
    found = dict(zip(images, ([masks[number] for number in of] for of in names.of_image), strict=True))
    return {image: of_image for image, of_image in found.items() if of_image}


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
def test_names_of_masks(mask):
    assert _matched(["a.jpg", "b.jpg"], [mask]) == {"a.jpg": [mask]}


@pytest.mark.parametrize(
    "mask", ["c.png", "a1.png", "mask_of_a.png", "masks.png", "ab.png", "a_masked.png", "x/y.png"]
)
def test_masks_of_no_image(mask):
    names = match_masks(["a.jpg", "b.jpg"], [mask])
    assert names.orphans == [0]
    assert names.of_image == [[], []]


def test_every_region_has_a_file():
    masks = ["a_0.png", "a_1.png", "b/000.png", "b/001.png", "c.png", "c_mask.png"]
    assert _matched(["a.png", "b.png", "c.png"], masks) == {
        "a.png": ["a_0.png", "a_1.png"],
        "b.png": ["b/000.png", "b/001.png"],
        "c.png": ["c.png", "c_mask.png"],
    }


def test_numbers_of_images_are_no_numbers_of_regions():
    """part_3.png is the mask of an image that is missing, not a region of part.png."""
    names = match_masks(["part.png", "part_1.png", "part_2.png"], ["part_1.png", "part_3.png", "part.png"])
    assert names.of_image == [[2], [0], []]
    assert names.orphans == [1]


def test_sub_folders_mirror_those_of_the_images():
    images = ["line 1/000.png", "line 2/000.png"]
    masks = ["line 2/000_mask.png", "line 1/000.png"]
    assert _matched(images, masks) == {images[0]: [masks[1]], images[1]: [masks[0]]}


def test_sub_folders_may_differ_where_one_side_has_none():
    assert _matched(["a.png", "b.png"], ["scratch/a.png", "dent/a_mask.png", "dent/b.png"]) == {
        "a.png": ["scratch/a.png", "dent/a_mask.png"],
        "b.png": ["dent/b.png"],
    }
    assert _matched(["x/a.png", "y/b.png"], ["a.png", "b.png"]) == {
        "x/a.png": ["a.png"],
        "y/b.png": ["b.png"],
    }


def test_a_copy_of_the_masks_in_a_sub_folder_is_not_united_with_them():
    names = match_masks(["a.png", "b.png"], ["a.png", "old/a.png", "old/b.png"])
    assert names.of_image == [[0], [2]]
    assert names.orphans == [1]


def test_a_mask_of_a_missing_sub_folder_goes_to_no_other_image():
    names = match_masks(["line 1/a.png"], ["line 1/a.png", "line 2/a.png"])
    assert names.of_image == [[0]]
    assert names.orphans == [1]


def test_two_images_of_one_stem_cannot_share_a_mask():
    names = match_masks(["a.jpg", "a.png"], ["a.bmp", "a.jpg.png"])
    assert names.ambiguous == {0: [0, 1]}
    assert names.of_image == [[1], []]


def test_upper_and_lower_case_tell_images_apart():
    assert _matched(["a.png", "A.png"], ["A_mask.png", "a.png"]) == {
        "a.png": ["a.png"],
        "A.png": ["A_mask.png"],
    }


def test_the_two_spellings_of_accented_names_are_one():
    assert _matched(["u\u0308.png"], ["ü_mask.png"]) == {"u\u0308.png": ["ü_mask.png"]}


def test_names_with_dots_keep_them():
    assert _matched(["lot.1.v2.png", "lot.1.png"], ["lot.1.v2_mask.PNG"]) == {
        "lot.1.v2.png": ["lot.1.v2_mask.PNG"]
    }
