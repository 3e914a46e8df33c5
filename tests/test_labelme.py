"""labelme JSON as a source of masks."""

import base64

import cv2
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
    write_values,
)


def shape(kind: str, points, label: str = "scratch", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, "group_id": None} | more


def labelme(*shapes: dict, name: str = "a.png", **changes) -> dict:
    values = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    return values | changes


def picture(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()).decode()


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


PART = np.array([[1, 0, 1], [1, 1, 1]], bool)


def test_labelme_marks_polygons_and_rectangles(root):
    x, y, width, height = SECOND
    values = labelme(shape("polygon", corners(*FIRST)), shape("rectangle", [(x + width, y + height), (x, y)]))
    write_values(root / "images/a.json", values)
    write_values(root / "images/b.json", labelme(name="b.png"))
    masks = masks_of(root, "images")
    assert np.array_equal(masks["a.png"], rectangle(FIRST, SECOND))
    assert masks["b.png"] is None


def test_labelme_marks_a_mask_between_its_points(root):
    """Both points belong to it: columns 4 to 6, rows 2 to 3."""
    write_values(root / "images/a.json", labelme(shape("mask", [(4, 2), (6, 3)], mask=picture(PART))))
    mask = masks_of(root, "images")["a.png"]
    assert np.array_equal(mask[2:4, 4:7], PART) and mask.sum() == PART.sum()


def test_labelme_marks_a_circle(root):
    write_values(root / "images/a.json", labelme(shape("circle", [(6, 4), (9, 4)])))
    rows, columns = np.indices((HEIGHT, WIDTH)) + 0.5
    mask = masks_of(root, "images")["a.png"]
    assert np.array_equal(mask, (rows - 4) ** 2 + (columns - 6) ** 2 <= 9)


@pytest.mark.parametrize("kind", ["line", "linestrip"])
def test_labelme_draws_lines(root, kind):
    write_values(root / "images/a.json", labelme(shape(kind, [(0, 0), (0, HEIGHT - 1)])))
    mask = masks_of(root, "images")["a.png"]
    assert mask[:, :5].all() and not mask[:, 6:].any()


def test_labelme_images_without_a_file_are_left_out(root, capsys):
    write_values(root / "images/a.json", labelme(shape("polygon", corners(*FIRST))))
    assert list(prepare_annotated(root, "images").index) == ["a.png"]
    output = capsys.readouterr().out
    assert "1 images are not named in" in output and "b.png" in output
    assert ".json" not in output  # as a file that is not taken


@pytest.mark.parametrize("name", ["..\\pictures\\a.png", "/home/somebody/renamed.png", "a.jpg"])
def test_labelme_finds_the_image_by_its_own_name_too(root, name):
    write_values(root / "labels/a.json", labelme(shape("polygon", corners(*FIRST)), name=name))
    assert prepare_annotated(root, "labels")["label"].to_dict() == {"a.png": 1}


def test_labelme_labels_become_classes(root):
    shapes = [shape("polygon", corners(*FIRST)), shape("polygon", corners(*SECOND), "Dent")]
    write_values(root / "images/a.json", labelme(*shapes))
    images = prepare_annotated(root, "images", classes=["dent", "scratch"])
    assert (images.loc["a.png", ["defect_dent", "defect_scratch"]] != "").all()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (labelme(shape("polygon", [("x", 1)])), "coordinates that are no numbers"),
        (labelme(shape("rectangle", [(1, 2)])), "1 points in place of 2 (rectangle)"),
        (labelme(shape("spline", [(1, 2)])), "the shape_type 'spline'"),
        (labelme(shape([[]], [(1, 2)])), "the shape_type '[[]]'"),
        (labelme(shape("line", [(1, 2), (3, 4)]), imageHeight=10**9, imageWidth=10**9), "no imageHeight"),
        (labelme("scratch"), "shape 0 has no keys and values"),
        (labelme(shape("mask", [(4, 2), (6, 3)], mask="?")), "a mask that is no PNG in base64"),
        (labelme(shape("mask", [(4, 2), (7, 3)], mask=picture(PART))), "does not fit its two points"),
        (labelme(shape("mask", [(10, 2), (12, 3)], mask=picture(PART))), "reaches outside its image"),
        (labelme(shape("line", [(1, 2), (3, 4)]), imageHeight=None), "no imageHeight"),
    ],
)
def test_labelme_refuses(root, values, problem):
    write_values(root / "images/a.json", values)
    message = prepare_error(root, "images")
    assert problem in message and "a.json" in message


def test_labelme_points_of_three_coordinates_are_refused(root):
    write_values(root / "labels/a.json", labelme(shape("polygon", [[1, 2, 3], [4, 5, 6]])))
    assert "shape 0 has points of 3 coordinates in place of 2" in prepare_error(root, "labels")


def test_labelme_shapes_without_a_label_are_noted(root, capsys):
    shapes = [shape("polygon", corners(*FIRST), label=None), shape("polygon", corners(*SECOND))]
    write_values(root / "labels/a.json", labelme(*shapes))
    prepare_annotated(root, "labels")
    assert "the categories without name, scratch count as one" in capsys.readouterr().out


def test_labelme_files_mean_the_images_of_their_own_name_before_those_that_they_state(root):
    write_values(root / "labels/a.json", labelme(shape("rectangle", [[2, 1], [5, 4]]), name="b.png"))
    write_values(root / "labels/b.json", labelme(name="a.png"))
    masks = masks_of(root, "labels")
    assert masks["a.png"] is not None
    assert masks["b.png"] is None
