"""Which images annotations mean, and the labels that follow."""

import pytest
from annotation_sets import (
    FIRST,
    HEIGHT,
    SECOND,
    WIDTH,
    prepare_annotated,
    prepare_error,
    write_images,
    write_values,
)
from conftest import texture, write_png


def write_coco(root, marks: dict[str, list[tuple]], category: str = "scratch") -> None:
    """coco.json with the boxes of each image."""
    images = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(marks)]
    boxes = [(n, box) for n, of_image in enumerate(marks.values()) for box in of_image]
    annotations = [
        {"id": k, "image_id": n, "category_id": 1, "bbox": box} for k, (n, box) in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": category}]
    write_values(root / "coco.json", {"images": images, "annotations": annotations, "categories": categories})


def write_folders(root, *names: str):
    """Pictures at paths below `root`."""
    for seed, name in enumerate(names):
        write_png(root / name, texture(seed)[:HEIGHT, :WIDTH])
    return root


BY_LABEL = {"normal": "good", "abnormal": "bad", "images": None}


def test_matching_images_that_are_not_here_are_counted(tmp_path, capsys):
    root = write_images(tmp_path / "parts", "a.png")
    write_coco(root, {"a.png": [FIRST]} | {f"other{n}.png": [FIRST] for n in range(5)})
    prepare_annotated(root, "coco.json")
    expected = "has annotations of 5 images that are not here: other0.png, other1.png, other2.png and 2 more"
    assert expected in capsys.readouterr().out


def test_matching_images_that_are_not_named_are_left_out_and_counted(tmp_path, capsys):
    root = write_images(tmp_path / "parts", "a.png", *(f"new{n}.png" for n in range(5)))
    write_coco(root, {"a.png": [FIRST]})
    assert list(prepare_annotated(root, "coco.json").index) == ["a.png"]
    output = capsys.readouterr().out
    assert "5 images are not named in" in output and "new2.png and 2 more" in output


def test_matching_refuses_annotations_of_other_images_altogether(tmp_path):
    root = write_images(tmp_path / "parts", "a.png")
    write_coco(root, {f"other{n}.png": [FIRST] for n in range(5)})
    message = prepare_error(root, "coco.json")
    assert "names other0.png, other1.png, other2.png and 2 more, which is no image here" in message


def test_matching_prefers_abnormal_images_of_the_same_name(tmp_path):
    root = write_folders(tmp_path / "parts", "good/1.png", "good/2.png", "bad/1.png")
    write_coco(root, {"1.png": [FIRST]})
    images = prepare_annotated(root, "coco.json", folders=BY_LABEL).set_index("image_id")
    assert (images["runs"] != "").to_dict() == {"good/1.png": False, "good/2.png": False, "bad/1.png": True}


def test_matching_whole_paths_come_first(tmp_path):
    root = write_folders(tmp_path / "parts", "images/good/1.png", "images/bad/1.png")
    write_coco(root, {"images/bad/1.jpg": [FIRST], "images/good/1.jpg": []})
    images = prepare_annotated(root, "coco.json").set_index("image_id")
    assert images["label"].to_dict() == {"images/good/1.png": 0, "images/bad/1.png": 1}


def test_matching_refuses_a_name_of_two_images(tmp_path):
    root = write_images(tmp_path / "parts", "x/1.png", "y/1.png")
    write_coco(root, {"1.png": [FIRST]})
    assert "the ids 1.png may mean images/x/1.png or images/y/1.png" in prepare_error(root, "coco.json")


def test_matching_leaves_test_images_alone(tmp_path, capsys):
    root = write_folders(tmp_path / "parts", "images/1.png", "new/9.png")
    write_coco(root, {"1.png": [FIRST], "9.png": [FIRST]})
    images = prepare_annotated(root, "coco.json", folders={"test": "new"})
    assert images["runs"].ne("").to_dict() == {"1.png": True, "9.png": False}
    assert (
        "1 annotated images are test images: their marks are left out: new/9.png" in capsys.readouterr().out
    )


def test_matching_refuses_abnormal_images_without_a_mark(tmp_path, capsys):
    root = write_folders(tmp_path / "parts", "good/1.png", "bad/2.png", "bad/3.png")
    write_coco(root, {"2.png": [FIRST], "3.png": []})
    message = prepare_error(root, "coco.json", folders=BY_LABEL)
    assert "marks nothing in bad/3.png" in message and "data.bad_masks=drop" in message
    images = prepare_annotated(root, "coco.json", folders=BY_LABEL, bad_masks="drop")
    assert images["label"].to_dict() == {"1.png": 0, "2.png": 1, "3.png": 1}
    assert "1 abnormal images have no annotation: bad/3.png" in capsys.readouterr().out


def test_matching_refuses_abnormal_images_of_no_class(tmp_path):
    root = write_folders(tmp_path / "parts", "good/1.png", "bad/2.png", "bad/3.png")
    write_coco(root, {"2.png": [FIRST], "3.png": []})
    message = prepare_error(root, "coco.json", folders=BY_LABEL, classes=["scratch"], bad_masks="drop")
    assert "marks nothing in bad/3.png: annotate or remove them" in message


def test_matching_refuses_marks_in_normal_images(tmp_path, capsys):
    root = write_folders(tmp_path / "parts", "good/1.png", "bad/2.png")
    write_coco(root, {"1.png": [FIRST], "2.png": [FIRST]})
    message = prepare_error(root, "coco.json", folders=BY_LABEL)
    assert "marks defects in normal images: good/1.png" in message
    images = prepare_annotated(root, "coco.json", folders=BY_LABEL, contradictions="report")
    assert images["runs"].ne("").to_dict() == {"1.png": False, "2.png": True}
    assert "these marks are left out" in capsys.readouterr().out


def test_matching_refuses_unlisted_categories_or_leaves_them_out(tmp_path, capsys):
    root = write_images(tmp_path / "parts", "a.png", "b.png", "c.png")
    values = {"a.png": [FIRST], "b.png": [], "c.png": [SECOND]}
    write_coco(root, values)
    message = prepare_error(root, "coco.json", classes=["dent"])
    assert "has the categories 'scratch', which data.classes (dent) lacks" in message
    images = prepare_annotated(root, "coco.json", classes=["dent"], unlisted_classes="drop")
    assert images["label"].to_dict() == {"b.png": 0}
    output = capsys.readouterr().out
    assert "2 marks of scratch" in output and "2 images with no other defects" in output
    assert "no training image has a defect of class dent" in output


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"folders": {"normal": None, "images": None}}, "data.folders names no training images"),
        ({"folders": {"masks": "masks"}}, "data.folders.masks and data.annotations both say"),
        ({"source": "defect_normal"}, "is not a folder"),
        ({"annotation_format": "voc"}, "holds nothing in the format voc"),
    ],
)
def test_matching_refuses_settings_that_do_not_fit(tmp_path, settings, problem):
    root = write_images(tmp_path / "parts", "a.png")
    write_coco(root, {"a.png": [FIRST]})
    assert problem in prepare_error(root, "coco.json", **settings)


def test_matching_says_that_nothing_is_marked(tmp_path, capsys):
    root = write_images(tmp_path / "parts", "a.png", "b.png")
    write_coco(root, {"a.png": [], "b.png": []})
    prepare_annotated(root, "coco.json")
    assert "coco.json marks no defect: all images that it names count as normal" in capsys.readouterr().out
