"""YOLO text files as a source of masks."""

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
)


def box(number: int, x: int, y: int, width: int, height: int) -> str:
    values = ((x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT)
    return " ".join(map(str, (number, *values)))


def outline(number: int, *rectangle: int) -> str:
    values = [value for x, y in corners(*rectangle) for value in (x / WIDTH, y / HEIGHT)]
    return " ".join(map(str, (number, *values)))


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        (box(0, *FIRST), rectangle(FIRST)),
        (box(0, *FIRST) + " 0.91", rectangle(FIRST)),
        (outline(1, *SECOND), rectangle(SECOND)),
        (f"{box(0, *FIRST)}\r\n\n{outline(1, *SECOND)}\n", rectangle(FIRST, SECOND)),
    ],
)
def test_yolo_marks(root, text, mask):
    write_text(root / "labels/a.txt", text)
    masks = masks_of(root, "labels")
    assert np.array_equal(masks["a.png"], mask)
    assert masks["b.png"] is None


def test_yolo_images_without_a_file_or_with_an_empty_one_are_normal(root, capsys):
    write_images(root, "a.png", "b.png", "c.png")
    write_text(root / "labels/a.txt", box(0, *FIRST))
    write_text(root / "labels/b.txt", "")
    assert prepare_annotated(root, "labels")["label"].to_dict() == {"a.png": 1, "b.png": 0, "c.png": 0}
    assert "1 images are not named in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "nc: 2\nnames: [scratch, dent]\n"),
        ("data.yaml", "path: /elsewhere\ntrain: images\nnames:\n  0: scratch\n  1: dent\n"),
        ("labels/classes.txt", "scratch\ndent\n"),
        ("obj.names", "scratch\ndent\n"),
    ],
)
def test_yolo_names_become_classes(root, name, text):
    write_text(root / name, text)
    write_text(root / "labels/a.txt", box(1, *FIRST))
    images = prepare_annotated(root, "labels", classes=["scratch", "dent"])
    assert (images.loc["a.png", ["defect_scratch", "defect_dent"]] != "").tolist() == [False, True]


def test_yolo_numbers_are_names_where_no_file_has_any(root, capsys):
    write_text(root / "labels/a.txt", box(1, *FIRST))
    images = prepare_annotated(root, "labels", classes=["0", "1"])
    assert images.loc["a.png", "defect_1"] != ""
    assert "neither a data.yaml nor a classes.txt" in capsys.readouterr().out


def test_yolo_data_yaml_may_be_named_itself(root):
    write_text(root / "data.yaml", "names: [scratch]")
    write_text(root / "labels/a.txt", box(0, *FIRST))
    assert np.array_equal(masks_of(root, "data.yaml")["a.png"], rectangle(FIRST))


def test_yolo_labels_lie_like_their_images(tmp_path):
    """labels/train/a.txt belongs to images/train/a.png, not to images/val/a.png."""
    root = write_images(tmp_path / "parts", "train/a.png", "val/a.png")
    write_text(root / "labels/val/a.txt", box(0, *FIRST))
    images = prepare_annotated(root, ".")
    assert images.set_index("image_id")["label"].to_dict() == {"images/train/a.png": 0, "images/val/a.png": 1}


def test_yolo_other_text_files_are_named(root, capsys):
    write_text(root / "labels/a.txt", box(0, *FIRST))
    write_text(root / "labels/README.txt", "Exported in May")
    masks_of(root, "labels")
    assert "1 text files hold no YOLO labels: README.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 0.5 0.5", "line 1 has 3 values: a box has 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "an odd number of coordinates"),
        ("0 0.5 0.5 0.1 x", "coordinates that are no numbers"),
        (f"{box(0, *FIRST)}\n7 0.5 0.5 0.1 0.1", "line 2 has the class 7, which its names (scratch) lack"),
        ("0.5 0.5 0.5 0.1 0.1", "the class 0.5, which is no whole number"),
        ("0 5 4 3 3", "coordinates in pixels"),
    ],
)
def test_yolo_refuses(root, text, problem):
    write_text(root / "data.yaml", "names: [scratch]")
    message = prepare_error(root, str(write_text(root / "labels/a.txt", text).parent))
    assert problem in message and "a.txt" in message


def test_yolo_refuses_data_yaml_without_names(root):
    write_text(root / "labels/a.txt", box(0, *FIRST))
    write_text(root / "data.yaml", "train: images")
    assert "data.yaml has no list `names`" in prepare_error(root, "data.yaml")


@pytest.mark.parametrize("separator", [",", ";", ", "])
def test_yolo_labels_with_separators_are_refused(root, separator):
    write_text(root / "labels/a.txt", box(0, *FIRST).replace(" ", separator))
    write_text(root / "labels/b.txt", box(0, *SECOND))
    assert "a.txt: line 1 has the class 0," in prepare_error(root, "labels").replace(";", ",")


@pytest.mark.parametrize("labels", ["labels/train", "train/labels"])
def test_yolo_names_stand_beside_the_folder_of_a_split(root, labels):
    write_text(root / labels / "a.txt", box(1, *FIRST))
    write_text(root / "data.yaml", "names: [dent, scratch]\n")
    prepared = prepare_annotated(root, labels, classes=["scratch"])
    assert prepared.set_index("path").loc["images/a.png", "kind"] == "scratch"
