"""What a folder of images is, by names of folders and files, annotations and masks; or one clear line."""

import json
from functools import cache

import cv2
import numpy as np
import pytest
from annotation_sets import write_text
from conftest import write_png

from defects.config_schema import data_config_class
from defects.messages import UserError
from defects.start.folder_names import names_defect, tell_role
from defects.start.recognition import recognise


@cache
def encode(value: int) -> bytes:
    """A PNG of 16x16 pixels: a gradient, or for 255 a mask."""
    image = np.tile(np.arange(16, dtype=np.uint8) * 8 + value, (16, 1))
    if value == 255:
        image = np.zeros((16, 16), np.uint8)
        image[4:9, 4:9] = 255
    return cv2.imencode(".png", image)[1].tobytes()


def add_images(folder, count=3, name="a{}.png", value=10):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / name.format(number)).write_bytes(encode(value))


def write_coco(path, names):
    images = [
        {"id": number, "file_name": name, "width": 16, "height": 16} for number, name in enumerate(names)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))


def data_of(folder):
    """The settings that were recognised; valid ones of a configuration."""
    data = recognise(folder).settings["data"]
    values = data | {"name": "x", "root": "x", "image_size": [64, 64]}
    data_config_class(values).model_validate(values)
    return data


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [("good", "bad"), ("OK", "NG"), ("Normal", "abnormal"), ("정상", "불량"), ("0_ok parts", "1_not-ok")],
)
def test_recognise_takes_usual_names_of_folders(tmp_path, normal, abnormal):
    add_images(tmp_path / normal)
    add_images(tmp_path / abnormal)
    add_images(tmp_path / "ground truth", name="a{}_mask.png", value=255)
    add_images(tmp_path / "Unlabelled")
    folders = {"normal": normal, "abnormal": abnormal, "masks": "ground truth", "test": "Unlabelled"}
    assert data_of(tmp_path) == {"source": "folders", "folders": folders}


def test_recognise_takes_sorted_folders_below_a_folder_of_images(tmp_path):
    add_images(tmp_path / "images" / "good")
    add_images(tmp_path / "images" / "bad")
    expected = {"normal": "images/good", "abnormal": "images/bad"}
    assert data_of(tmp_path)["folders"] == expected
    add_images(tmp_path / "masks" / "bad", value=255)
    add_images(tmp_path / "test")
    expected |= {"masks": "masks", "test": "test"}
    assert data_of(tmp_path)["folders"] == expected


def test_recognise_goes_into_the_only_folder(tmp_path):
    for name in ("good", "bad"):
        add_images(tmp_path / "photos of 2024" / "parts" / name)
    recognised = recognise(tmp_path)
    assert recognised.root == tmp_path / "photos of 2024" / "parts"
    assert recognised.settings["data"]["folders"] == {"normal": "good", "abnormal": "bad"}


def test_recognise_takes_several_kinds_of_defects(tmp_path):
    for name in ("good", "scratch", "dent"):
        add_images(tmp_path / name)
    settings = {"train": ".", "test": None, "normal": "good"}
    assert data_of(tmp_path) == {"source": "class_folders", "class_folders": settings}
    add_images(tmp_path / "test")
    assert data_of(tmp_path)["folders"] == {"normal": "good", "abnormal": ".", "test": "test"}


def test_recognise_takes_train_and_test_folders(tmp_path):
    add_images(tmp_path / "a" / "train" / "good")
    add_images(tmp_path / "a" / "test" / "good")
    add_images(tmp_path / "a" / "test" / "scratch")
    assert data_of(tmp_path / "a") == {"source": "mvtec", "use_test_as": "train"}
    for part in ("train", "test"):
        for kind in ("ok_front", "def_front"):
            add_images(tmp_path / "b" / part / kind)
    settings = {"train": "train", "test": "test", "normal": "ok_front"}
    assert data_of(tmp_path / "b") == {"source": "class_folders", "class_folders": settings}
    add_images(tmp_path / "c" / "Train" / "ok")
    add_images(tmp_path / "c" / "Train" / "bad")
    add_images(tmp_path / "c" / "Test")
    expected = {"normal": "Train/ok", "abnormal": "Train/bad", "test": "Test"}
    assert data_of(tmp_path / "c")["folders"] == expected


@pytest.mark.parametrize(
    ("images", "annotations", "expected"),
    [
        (".", "export.json", {"images": ".", "annotations": "export.json"}),
        ("images", "annotations/instances.json", {"images": "images", "annotations": "annotations"}),
        (
            "train",
            "train/_annotations.coco.json",
            {"images": "train", "annotations": "train/_annotations.coco.json"},
        ),
    ],
)
def test_recognise_takes_a_coco_export(tmp_path, images, annotations, expected):
    add_images(tmp_path / images)
    write_coco(tmp_path / annotations, ["a0.png"])
    data = data_of(tmp_path)
    assert data["annotations"] == expected["annotations"]
    assert data["folders"] == {"normal": None, "images": expected["images"]}


def test_recognise_takes_text_files_of_tools(tmp_path):
    add_images(tmp_path / "yolo" / "images" / "train")
    labels = tmp_path / "yolo" / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = data_of(tmp_path / "yolo")
    assert (data["folders"]["images"], data["annotations"]) == ("images/train", "labels/train")
    add_images(tmp_path / "labelme")
    shape = {"label": "dent", "points": [[1, 1], [4, 1], [4, 4]], "shape_type": "polygon"}
    for number in range(2):
        values = {"shapes": [shape], "imagePath": f"a{number}.png", "imageWidth": 16, "imageHeight": 16}
        (tmp_path / "labelme" / f"a{number}.json").write_text(json.dumps(values))
    data = data_of(tmp_path / "labelme")
    assert (data["folders"]["images"], data["annotations"]) == (".", ".")
    add_images(tmp_path / "runs" / "train_images")
    add_images(tmp_path / "runs" / "test_images")
    (tmp_path / "runs" / "train.csv").write_text("ImageId,EncodedPixels\na0.png,1 3\n")
    data = data_of(tmp_path / "runs")
    assert data["annotations"] == "train.csv"
    assert data["folders"] == {"normal": None, "images": "train_images", "test": "test_images"}


BOX_OF_YOLO = "0 0.5 0.5 0.2 0.2\n"
BOX_OF_VOC = "<annotation><filename>{}</filename></annotation>"


def test_recognise_joins_training_and_validation_images(tmp_path):
    for part in ("train", "valid", "test"):
        add_images(tmp_path / "coco" / part)
        write_coco(tmp_path / "coco" / part / "_annotations.coco.json", ["a0.png"])
        add_images(tmp_path / "voc" / part)
        write_text(tmp_path / "voc" / part / "a0.xml", BOX_OF_VOC.format("a0.png"))
        add_images(tmp_path / "yolo" / part / "images")
        write_text(tmp_path / "yolo" / part / "labels" / "a0.txt", BOX_OF_YOLO)
    for part in ("train2017", "val2017"):
        add_images(tmp_path / "years" / part)
        write_coco(tmp_path / "years" / "annotations" / f"instances_{part}.json", ["a0.png"])
    for part in ("train", "val"):
        add_images(tmp_path / "ultralytics" / "images" / part)
        write_text(tmp_path / "ultralytics" / "labels" / part / "a0.txt", BOX_OF_YOLO)
    found = {}
    for folder in sorted(tmp_path.iterdir()):
        data = data_of(folder)
        found[folder.name] = (data["folders"]["images"], data["folders"].get("test"), data["annotations"])
    assert found == {
        "coco": (".", "test", "."),
        "ultralytics": ("images", None, "."),
        "voc": (".", "test", "."),
        "years": (".", None, "annotations"),
        "yolo": (".", "test/images", "."),
    }


def test_recognise_leaves_validation_images_that_nobody_annotated(tmp_path):
    for part in ("train", "val"):
        add_images(tmp_path / "images" / part)
    write_text(tmp_path / "labels" / "train" / "a0.txt", BOX_OF_YOLO)
    data = data_of(tmp_path)
    assert (data["folders"]["images"], data["annotations"]) == ("images/train", "labels/train")


def test_recognise_takes_label_images_with_names_of_classes(tmp_path):
    add_images(tmp_path / "JPEGImages")
    add_images(tmp_path / "SegmentationClass", value=255)
    assert data_of(tmp_path)["source"] == "labelled_by_masks"
    write_text(tmp_path / "labelmap.txt", "background:0,0,0::\ndent:128,0,0::\n")
    data = data_of(tmp_path)
    assert (data["folders"]["images"], data["annotations"]) == ("JPEGImages", "SegmentationClass")


def test_recognise_takes_public_sets_as_downloaded(tmp_path):
    add_images(tmp_path / "kolektor" / "kos01", name="Part{}.png")
    add_images(tmp_path / "kolektor" / "kos02", name="Part{}.png")
    add_images(tmp_path / "kolektor" / "kos01", name="Part{}_label.png", value=255)
    assert recognise(tmp_path / "kolektor").settings["split"] == {"group_pattern": r"(kos\d+)/"}
    add_images(tmp_path / "can" / "train" / "good", name="00{}_regular.png")
    add_images(tmp_path / "can" / "test_public" / "bad", name="00{}_shift_1.png")
    assert data_of(tmp_path / "can") == {"source": "mvtec", "use_test_as": "train"}
    assert recognise(tmp_path / "can").settings["split"] == {"group_pattern": r"^(.+/\d+)"}
    add_images(tmp_path / "Class1" / "Train", count=5)
    add_images(tmp_path / "Class1" / "Train" / "Label", name="a{}_label.png", value=255)
    write_text(tmp_path / "Class1" / "Train" / "Label" / "Labels.txt", "1\n1\t1\ta0.png\t1\ta0_label.png\n")
    assert data_of(tmp_path / "Class1")["labelled_by_masks"] == {"train": "Train"}


def test_recognise_refuses_annotations_of_unknown_tools(tmp_path):
    add_images(tmp_path / "supervisely" / "img")
    write_text(tmp_path / "supervisely" / "ann" / "a0.png.json", '{"objects": []}')
    with pytest.raises(UserError, match=r"ann holds files named like images \(a0.png.json\), .* export COCO"):
        recognise(tmp_path / "supervisely")
    add_images(tmp_path / "beside")
    write_text(tmp_path / "beside" / "a0.json", '{"objects": []}')
    with pytest.raises(UserError, match="beside holds files named like images"):
        recognise(tmp_path / "beside")
    add_images(tmp_path / "empty")
    write_text(tmp_path / "empty" / "a0.txt", "")  # as YOLO's of an image without a defect
    assert data_of(tmp_path / "empty")["folders"] == {"normal": "."}


def test_recognise_takes_masks_among_images(tmp_path):
    add_images(tmp_path / "train", name="a{}.png")
    add_images(tmp_path / "train", name="a{}_GT.png", value=255)
    assert data_of(tmp_path) == {"source": "labelled_by_masks", "labelled_by_masks": {"train": "train"}}
    add_images(tmp_path / "valid", name="a{}.png")
    add_images(tmp_path / "valid", name="a{}_mask.png", value=255)
    assert data_of(tmp_path)["labelled_by_masks"] == {"train": "."}
    add_images(tmp_path / "test", name="a{}.png")  # without masks: these would count as normal
    assert data_of(tmp_path)["labelled_by_masks"] == {"train": "train", "test": None}


def test_recognise_takes_images_alone_for_normal(tmp_path):
    add_images(tmp_path / "with a note")
    write_text(tmp_path / "with a note" / "readme.txt", "Camera 1, March\n")
    assert data_of(tmp_path / "with a note")["folders"] == {"normal": "."}
    add_images(tmp_path / "plain")
    assert data_of(tmp_path / "plain")["folders"] == {"normal": "."}
    add_images(tmp_path / "정상만" / "정상")
    assert data_of(tmp_path / "정상만")["folders"] == {"normal": "정상"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images, nor anything else"),
        ({"clip.mp4": b"x"}, "1 .mp4: take pictures out of the videos"),
        ({"all.zip": b"x"}, "1 .zip: unpack the archives"),
        ({"a.png": encode(1)}, "a single image, a.png"),
        ({"NG/a.png": encode(1), "NG/b.png": encode(2)}, "NG holds defects alone"),
        ({"ok_1.png": encode(1), "ng_1.png": encode(2)}, "1 of 2 files are defects by their names"),
        ({"a.png": encode(1), "b.png": encode(2), "l.csv": b"a.png,1"}, "l.csv names the images"),
        ({"a.png": encode(1), "b.png": encode(2), "c.json": b'{"images": ['}, "not a complete JSON file"),
        ({"x/a.png": encode(1), "y/b.png": encode(2)}, r"holds x/, y/; looked for were \(1\) folders"),
        ({"train/0/a.png": encode(1), "train/1/b.png": encode(2)}, "in train/0/, train/1/: which of these"),
        ({"train/x/ng/a.png": encode(1), "train/x/ng/b.png": encode(2)}, "in train/x/ng/: which of these"),
        ({"good/a.png": encode(1), "ok/b.png": encode(2)}, "good and ok, all normal by their names"),
        ({"good/a.png": encode(1), "b.png": encode(2)}, "whether these are normal is not said"),
        ({f"{name}/train/good/a.png": encode(1) for name in ("b", "c")}, "holds several data sets"),
    ],
)
def test_recognise_refuses_in_one_line(tmp_path, files, message):
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as refused:
        recognise(tmp_path / "data")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("a.zip", "is an archive"),
        ("a.avi", "is a video"),
        ("a.png", "is a file"),
    ],
)
def test_recognise_refuses_what_is_no_folder(tmp_path, name, message):
    if name != "missing":
        write_png(tmp_path / name, np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=message):
        recognise(tmp_path / name)


def test_tell_role_knows_spellings(tmp_path):
    expected = {
        "Defect-Free": "normal",
        "NG images": "abnormal",
        "GT": "masks",
        "테스트": "test",
        "mug": "unknown",
    }
    assert {name: tell_role(tmp_path / name) for name in expected} == expected


def test_names_defect_reads_words(tmp_path):
    defects = ["NG_01.png", "part 3 bad.jpg", "불량-1.bmp", "ng12.png"]
    normal = ["string_1.png", "defect_free_1.png", "ok.png", "no_defect_2.png", "badge.png"]
    assert [names_defect(tmp_path / name) for name in defects + normal] == [True] * 4 + [False] * 5
