"""Masks of annotations: sizes, EXIF, what is wrong with shapes, the inventory."""

import json

import numpy as np
import pytest
from annotation_sets import (
    FIRST,
    HEIGHT,
    SECOND,
    WIDTH,
    annotated_config,
    corners,
    masks_of,
    prepare_annotated,
    prepare_error,
    rectangle,
    write_images,
    write_values,
)
from conftest import texture
from PIL import Image, ImageOps

from defects.data.index import find_index_problem, prepare


def write_coco(root, *entries: dict, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """coco.json with one annotation for each image a.png, b.png, ..."""
    images = [
        {"id": n, "file_name": f"{letter}.png", "width": size[0], "height": size[1]}
        for n, letter in zip(range(len(entries)), "abcdef", strict=False)
    ]
    annotations = [{"id": n, "image_id": n, "category_id": 1} | entry for n, entry in enumerate(entries)]
    categories = [{"id": 1, "name": "scratch"}]
    write_values(root / "coco.json", {"images": images, "annotations": annotations, "categories": categories})


def polygon(*points: tuple[float, float]) -> dict:
    return {"segmentation": [[value for point in points for value in point]]}


GOOD = polygon(*corners(*FIRST))


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("is_stored", [False, True])
def test_marking_of_images_that_exif_turns(tmp_path, orientation, is_stored):
    """Most tools annotate the image as it is seen; a stated size of the stored image says otherwise."""
    root = tmp_path / "parts"
    (root / "images").mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(texture(1)[:HEIGHT, :WIDTH])
    stored.save(root / "images/a.png", exif=exif)
    with Image.open(root / "images/a.png") as picture:
        seen = ImageOps.exif_transpose(picture)
    is_quarter = orientation >= 5
    if is_stored and is_quarter:
        size = stored.size
        marked = Image.fromarray(rectangle(FIRST))
        marked.getexif()[274] = orientation
        mask = np.asarray(ImageOps.exif_transpose(marked))
    else:
        size = seen.size
        mask = np.zeros(size[::-1], bool)
        mask[3:5, 2:6] = True
    write_coco(root, GOOD, size=size)
    assert np.array_equal(masks_of(root, "coco.json")["a.png"], mask)


def test_marking_refuses_a_size_that_is_not_the_images(root):
    write_coco(root, GOOD, size=(24, 18))
    message = prepare_error(root, "coco.json")
    assert "1 annotated images cannot be used: images/a.png is 12x9, its annotation says 24x18" in message
    assert "data.bad_masks=drop" in message


def test_marking_does_without_masks_of_another_size(root, capsys):
    write_coco(root, GOOD, GOOD, size=(24, 18))
    images = prepare_annotated(root, "coco.json", bad_masks="drop")
    assert images["label"].tolist() == [1, 1] and (images["runs"] == "").all()
    assert "2 annotated images cannot be used" in capsys.readouterr().out


def test_marking_refuses_marks_of_no_pixel(root):
    write_coco(root, polygon((1, 1), (5, 5)), polygon(*corners(30, 2, 4, 4)))
    message = prepare_error(root, "coco.json")
    assert "images/a.png (no pixel is marked); images/b.png (no pixel is marked)" in message


@pytest.mark.parametrize(
    ("bad", "note"),
    [
        (polygon((1, 1), (5, 5)), "1 images have polygons of fewer than three points"),
        (polygon(*corners(30, 2, 4, 4)), "1 images have marks outside the image"),
        (polygon(*corners(-4, 2, 6, 4)), "1 images have marks that reach over the border"),
        (polygon((1, 1), (9, 7), (9, 1), (1, 7)), "1 images have polygons that cross themselves"),
        (polygon(*corners(0, 0, WIDTH, HEIGHT)), "1 images are marked nearly all over"),
    ],
)
def test_marking_notes_what_is_wrong_with_shapes(root, capsys, bad, note):
    both = {"segmentation": bad["segmentation"] + GOOD["segmentation"]}
    write_coco(root, both)
    assert masks_of(root, "coco.json")["a.png"][3:5, 2:6].all()
    output = capsys.readouterr().out
    assert note in output and "images/a.png" in output


def test_marking_inventory_says_what_masks_are(root, capsys):
    write_coco(root, GOOD, {"bbox": list(SECOND)})
    prepare_annotated(root, "coco.json")
    lines = capsys.readouterr().out.splitlines()
    assert "annotations coco.json (COCO): marks scratch 2" in lines
    assert "masks       2 of 2 defects have one (boxes, polygons)" in lines
    assert any("the masks of 1 of 2 images are boxes" in line for line in lines)
    inventory = json.loads((root.parent / "output/tiny_data/inventory.json").read_text(encoding="utf-8"))
    assert inventory["masks"]["kinds"] == {"boxes": 1, "polygons": 1}


def test_marking_inventory_says_when_all_masks_are_boxes(root, capsys):
    write_coco(root, {"bbox": list(FIRST)}, {"bbox": list(SECOND)})
    prepare_annotated(root, "coco.json")
    assert "note: masks are boxes: they mark more than the defects" in capsys.readouterr().out


def test_marking_is_done_again_after_a_correction(root):
    config = annotated_config(root, "coco.json")
    write_coco(root, GOOD)
    prepare(config)
    assert find_index_problem(config) is None
    write_coco(root, polygon(*corners(*SECOND)))
    assert "data.annotations has changed" in find_index_problem(config)
