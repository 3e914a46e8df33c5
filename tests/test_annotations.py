"""Which format a file or folder of annotations has."""

import pytest
from annotation_sets import prepare_error, write_images, write_text, write_values

from defects.data.annotations import load_annotations, recognise_formats
from defects.messages import UserError

COCO = {"images": [], "annotations": [], "categories": []}
LABELME = {"shapes": [], "imagePath": "a.png"}
LABEL_STUDIO = [{"data": {"image": "a.png"}, "annotations": []}]
VOC = "<annotation><filename>a.png</filename></annotation>"


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("instances.json", COCO, "coco"),
        ("labels/_annotations.coco.json", COCO, "coco"),
        ("a.json", LABELME, "labelme"),
        ("labels/a.json", LABELME, "labelme"),
        ("export.json", LABEL_STUDIO, "label_studio"),
        ("export.json", [{"id": 1, "image": "a.png", "annotator": 1}], "label_studio"),
        ("labels/a.xml", VOC, "voc"),
        ("labels/a.txt", "0 0.5 0.5 0.1 0.1\n", "yolo"),
        ("train.csv", "ImageId,EncodedPixels\n", "csv"),
        ("data.yaml", "names: [a]\n", "yolo"),
    ],
)
def test_annotations_are_recognised(tmp_path, name, content, format):
    path = tmp_path / name
    write_text(path, content) if isinstance(content, str) else write_values(path, content)
    if path.parent == tmp_path:
        assert recognise_formats(path) == [format]
    else:
        write_text(path.parent / "notes.json", '{"info": {"version": 1}}')  # of Label Studio's YOLO export
        write_text(path.parent / "classes.txt", "scratch\n")
        assert recognise_formats(path.parent) == [format]


def test_annotations_of_two_formats_are_refused_unless_one_is_named(tmp_path):
    write_values(tmp_path / "coco.json", COCO)
    write_text(tmp_path / "a.xml", VOC)
    with pytest.raises(UserError, match="holds coco and voc: .*data.annotation_format"):
        load_annotations(tmp_path)
    assert load_annotations(tmp_path, "voc").format == "Pascal VOC"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", '{"images": [', "is not a complete JSON file"),
        ("a.json", '{"_via_settings": {}}', "holds no annotations that are known"),
        ("a.json", "[1, 2]", "holds no annotations that are known"),
        ("a.json", "[" * 100_000, "is not a complete JSON file"),
        ("a.zip", "PK", "is an archive: unpack it"),
        ("a.docx", "", "holds no annotations that are known"),
    ],
)
def test_annotations_of_other_kinds_are_refused(tmp_path, name, content, problem):
    with pytest.raises(UserError, match=problem):
        load_annotations(write_text(tmp_path / name, content))


def test_annotations_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes('{"결함": 1}'.encode("cp949"))
    with pytest.raises(UserError, match="no text in UTF-8"):
        load_annotations(tmp_path / "a.json")


def test_annotations_that_are_missing_are_refused(tmp_path):
    root = write_images(tmp_path / "parts", "a.png")
    message = prepare_error(root, "labels")
    assert "labels does not exist" in message and "data.annotations" in message


def test_annotations_of_a_layout_that_reads_none_are_refused(make_dataset):
    root = make_dataset(defects=1, normals=1, tests=0)
    message = prepare_error(root, "labels", source="defect_normal")
    assert "data.source=defect_normal reads no annotations" in message
