"""COCO JSON as a source of masks."""

import numpy as np
import pytest
from annotation_sets import (
    FIRST,
    HEIGHT,
    SECOND,
    WIDTH,
    corners,
    masks_of,
    prepare_annotated,
    prepare_error,
    rectangle,
    write_images,
    write_text,
    write_values,
)


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    return [value for corner in corners(*box) for value in corner]


def counts_of(mask: np.ndarray) -> list[int]:
    """Lengths down the columns, of unmarked pixels first."""
    pixels = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(pixels)) + 1
    lengths = np.diff([0, *edges, len(pixels)]).tolist()
    return [0, *lengths] if pixels[0] else lengths


def coco(*annotations: dict, images: tuple[str, ...] = ("a.png", "b.png"), **changes) -> dict:
    """The annotations are of image 1 and category 1, scratch, unless they say otherwise."""
    values = {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(images, start=1)
        ],
        "categories": [{"id": 1, "name": "scratch"}, {"id": 5, "name": "dent"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1} | annotation
            for number, annotation in enumerate(annotations)
        ],
    }
    return values | changes


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


SIZE = [HEIGHT, WIDTH]
HOLED = rectangle((1, 1, 8, 6)) & ~rectangle((3, 3, 2, 2))


@pytest.mark.parametrize(
    ("annotation", "mask"),
    [
        ({"segmentation": [polygon(FIRST)]}, rectangle(FIRST)),
        ({"segmentation": [polygon(FIRST), polygon(SECOND)]}, rectangle(FIRST, SECOND)),
        ({"segmentation": polygon(FIRST)}, rectangle(FIRST)),
        ({"segmentation": {"size": SIZE, "counts": counts_of(HOLED)}}, HOLED),
        ({"segmentation": {"size": SIZE, "counts": counts_of(HOLED)}, "iscrowd": 1}, HOLED),
        ({"segmentation": {"size": SIZE, "counts": "e054000l1"}}, rectangle((2, 3, 3, 5))),
        ({"bbox": list(FIRST)}, rectangle(FIRST)),
        ({"bbox": list(FIRST), "segmentation": []}, rectangle(FIRST)),
        ({"bbox": [0, 0, WIDTH, HEIGHT], "segmentation": [polygon(FIRST)]}, rectangle(FIRST)),
    ],
)
def test_coco_marks(root, annotation, mask):
    write_values(root / "coco.json", coco(annotation))
    masks = masks_of(root, "coco.json")
    assert np.array_equal(masks["a.png"], mask)
    assert masks["b.png"] is None


def test_coco_images_without_annotations_are_normal(root):
    write_values(root / "coco.json", coco({"bbox": list(FIRST)}))
    assert prepare_annotated(root, "coco.json")["label"].to_dict() == {"a.png": 1, "b.png": 0}


def test_coco_categories_become_classes(root):
    write_values(root / "coco.json", coco({"bbox": list(FIRST)}, {"bbox": list(SECOND), "category_id": 5}))
    images = prepare_annotated(root, "coco.json", classes=["dent", "scratch"])
    assert (images[["defect_dent", "defect_scratch"]] != "").loc["a.png"].all()
    assert images["kind"].to_dict() == {"a.png": "dent+scratch", "b.png": ""}


def test_coco_of_several_files(root):
    folder = root / "annotations"
    write_values(folder / "train.json", coco({"bbox": list(FIRST)}, images=("a.png",)))
    write_values(folder / "val.json", coco({"bbox": list(SECOND)}, images=("b.png",)))
    masks = masks_of(root, "annotations")
    assert np.array_equal(masks["a.png"], rectangle(FIRST))
    assert np.array_equal(masks["b.png"], rectangle(SECOND))


def test_coco_of_an_image_in_several_files_is_united(root, capsys):
    write_values(root / "annotations/old.json", coco({"bbox": list(FIRST)}, images=("a.png",)))
    write_values(root / "annotations/new.json", coco({"bbox": list(SECOND)}, images=("a.png",)))
    assert np.array_equal(masks_of(root, "annotations")["a.png"], rectangle(FIRST, SECOND))
    assert (
        "1 images are named more than once, their marks are united: images/a.png" in capsys.readouterr().out
    )


def test_coco_annotations_of_images_that_it_does_not_list_are_counted(root, capsys):
    write_values(root / "coco.json", coco({"bbox": list(FIRST)}, {"bbox": list(FIRST), "image_id": 9}))
    assert len(masks_of(root, "coco.json")) == 2
    assert "1 annotations of coco.json belong to no image that it lists" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            coco({"bbox": list(FIRST), "category_id": 2}),
            "category_id 2, which `categories` does not list (1, 5)",
        ),
        (coco({"segmentation": [[1, 2, 3]]}), "annotation 0 of a.png has an odd number of coordinates (3)"),
        (coco({"segmentation": [[1, 2, "x", 4]]}), "coordinates that are no numbers"),
        (coco({"bbox": [1, 2, 3]}), "an odd number of coordinates"),
        (coco({}), "neither a segmentation nor a bbox"),
        (coco({"segmentation": {"size": [4, 4], "counts": [16]}}), "4x4 pixels, its image 12x9"),
        (coco({"segmentation": {"size": SIZE, "counts": [3]}}), "3 pixels in place of 108"),
        (coco({"segmentation": {"size": SIZE}}), "a run-length mask without counts"),
        (coco(annotations=7), "`annotations` is no list of objects"),
        (coco(images=(None,)), "image 0 has no id or no file_name"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "COCO results alone"),
    ],
)
def test_coco_refuses(root, values, problem):
    write_values(root / "coco.json", values)
    message = prepare_error(root, "coco.json")
    assert problem in message and str(root / "coco.json") in message


def test_coco_refuses_a_file_that_ends_too_early(root):
    text = write_values(root / "coco.json", coco({"bbox": list(FIRST)})).read_text()
    write_text(root / "coco.json", text[:-30])
    assert "coco.json is not a complete JSON file" in prepare_error(root, "coco.json")


def test_coco_ids_that_are_written_as_fractions_are_the_same(root):
    values = coco({"segmentation": [polygon(FIRST)], "image_id": 1.0, "category_id": 1.0})
    write_values(root / "marks.json", values)
    assert np.array_equal(masks_of(root, "marks.json")["a.png"], rectangle(FIRST))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]},
            "the images a.png and b.png have the same id, 1: export it again",
        ),
        (
            {"categories": [{"id": 1, "name": "scratch"}, {"id": 1, "name": "dent"}]},
            "two categories have the id 1: export it again",
        ),
        ({"categories": []}, "which `categories` does not list (it is empty)"),
    ],
)
def test_coco_ids_that_are_ambiguous_or_missing_are_refused(root, changes, problem):
    write_values(root / "marks.json", coco({"segmentation": [polygon(FIRST)]}) | changes)
    assert problem in prepare_error(root, "marks.json")
