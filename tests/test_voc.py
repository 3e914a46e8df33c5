"""Pascal VOC as a source of masks: boxes in XML, label images."""

from pathlib import Path

import numpy as np
import pytest
from annotation_sets import (
    FIRST,
    HEIGHT,
    SECOND,
    WIDTH,
    masks_of,
    prepare_annotated,
    prepare_error,
    rectangle,
    write_images,
    write_text,
)
from conftest import write_png
from PIL import Image


def thing(left, top, right, bottom, name: str = "scratch") -> str:
    sides = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{sides}</bndbox></object>"


def from_one(x: int, y: int, width: int, height: int, name: str = "scratch") -> str:
    """As VOC counts: the first pixel is 1, and the last one belongs to the box."""
    return thing(x + 1, y + 1, x + width, y + height, name)


def voc(*objects: str, name: str = "a.png", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{sizes}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


def write_labels(path: Path, labels: np.ndarray, has_palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    if has_palette:
        colours = np.zeros((256, 3), np.uint8)
        colours[1:3] = [(128, 0, 0), (0, 128, 0)]
        colours[255] = (224, 224, 192)
        picture.putpalette(colours.ravel().tolist())
    picture.save(path)


def two_labels() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[rectangle(FIRST)] = 1
    labels[rectangle(SECOND)] = 2
    labels[0] = 255  # a border, which counts as neither
    return labels


def test_voc_boxes_count_from_one_and_include_the_last_pixel(root):
    write_text(root / "Annotations/a.xml", voc(from_one(*FIRST), from_one(*SECOND)))
    write_text(root / "Annotations/b.xml", voc(name="b.png"))
    masks = masks_of(root, "Annotations")
    assert np.array_equal(masks["a.png"], rectangle(FIRST, SECOND))
    assert masks["b.png"] is None


@pytest.mark.parametrize("other", [thing(0, 1, 4, 5), thing(2.0, 1.5, 4.0, 5.0)])
def test_voc_boxes_of_programs_that_count_from_zero(root, capsys, other):
    x, y, width, height = FIRST
    write_text(root / "Annotations/a.xml", voc(thing(x, y, x + width, y + height)))
    write_text(root / "Annotations/b.xml", voc(other, name="b.png"))
    assert np.array_equal(masks_of(root, "Annotations")["a.png"], rectangle(FIRST))
    output = capsys.readouterr().out
    assert "count pixels from 0" in output and "note: masks are boxes" in output


def test_voc_polygons(root):
    points = "".join(
        f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate([(2, 3), (6, 3), (6, 5), (2, 5)])
    )
    text = f"<object><name>scratch</name><polygon>{points}</polygon></object>"
    write_text(root / "Annotations/a.xml", voc(text))
    assert np.array_equal(masks_of(root, "Annotations")["a.png"], rectangle(FIRST))


def test_voc_names_become_classes(root):
    write_text(root / "Annotations/a.xml", voc(from_one(*FIRST, "Scratch"), from_one(*SECOND, "dent")))
    images = prepare_annotated(root, "Annotations", classes=["dent", "scratch"])
    assert (images.loc["a.png", ["defect_dent", "defect_scratch"]] != "").all()


@pytest.mark.parametrize("has_palette", [True, False])
def test_voc_label_images(root, has_palette):
    write_labels(root / "SegmentationClass/a.png", two_labels(), has_palette)
    masks = masks_of(root, "SegmentationClass")
    assert np.array_equal(masks["a.png"], rectangle(FIRST, SECOND))


def test_voc_label_images_have_the_names_of_class_names(root):
    write_labels(root / "SegmentationClass/a.png", two_labels())
    write_text(root / "class_names.txt", "_background_\nscratch\ndent\n")
    images = prepare_annotated(root, "SegmentationClass", classes=["scratch", "dent"])
    assert (images.loc["a.png", ["defect_scratch", "defect_dent"]] != "").all()


def test_voc_label_images_in_the_colours_of_labelmap(root):
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[rectangle(FIRST)] = (255, 0, 10)
    write_png(root / "SegmentationClass/a.png", colours)
    write_text(
        root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndent:255,0,10::\n"
    )
    assert np.array_equal(masks_of(root, "SegmentationClass", classes=["dent"])["a.png"], rectangle(FIRST))


def test_voc_label_images_in_black_and_white(root):
    write_labels(root / "SegmentationClass/a.png", rectangle(FIRST) * 255, has_palette=False)
    assert np.array_equal(masks_of(root, "SegmentationClass")["a.png"], rectangle(FIRST))


def test_voc_label_images_count_before_boxes(root, capsys):
    write_text(root / "Annotations/a.xml", voc(from_one(*SECOND)))
    write_text(root / "Annotations/b.xml", voc(from_one(*SECOND), name="b.png"))
    write_labels(root / "SegmentationClass/a.png", rectangle(FIRST) * 1)
    masks = masks_of(root, ".")
    assert np.array_equal(masks["a.png"], rectangle(FIRST))
    assert np.array_equal(masks["b.png"], rectangle(SECOND))
    output = capsys.readouterr().out
    assert "1 images have boxes and a label image" in output
    assert "the masks of 1 of 2 images are boxes" in output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (voc(from_one(*FIRST))[:-20], "a.xml is not a complete XML file"),
        (voc("<object><name>scratch</name></object>"), "a.xml: object 1 has no bndbox"),
        (voc(thing("left", 1, 2, 3)), "a.xml: object 1 has coordinates that are no numbers"),
        (f"<!DOCTYPE a [<!ENTITY b 'c'>]>{voc(from_one(*FIRST))}", "a.xml defines entities"),
        ("<annotations><image/></annotations>", "holds no annotations that are known"),
    ],
)
def test_voc_refuses(root, text, problem):
    write_text(root / "Annotations/a.xml", text)
    assert problem in prepare_error(root, "Annotations")


def test_voc_refuses_colours_without_a_list(root):
    write_png(root / "SegmentationClass/a.png", np.full((HEIGHT, WIDTH, 3), (255, 0, 10), np.uint8))
    assert "a.png is a picture of colours" in prepare_error(root, "SegmentationClass")
    write_text(root / "labelmap.txt", "background:0,0,0::\n")
    assert "a.png holds the colour 255,0,10" in prepare_error(root, "SegmentationClass")


def test_voc_files_mean_the_images_of_their_own_name_before_those_that_they_state(root, capsys):
    write_text(root / "Annotations/a.xml", voc(from_one(*FIRST), name="b.png"))
    write_text(root / "Annotations/b.xml", voc(name="gone.png"))
    masks = masks_of(root, "Annotations")
    assert np.array_equal(masks["a.png"], rectangle(FIRST))
    assert masks["b.png"] is None
    assert "2 files state another name than their own" in capsys.readouterr().out


def test_voc_files_of_other_names_mean_the_images_that_they_state(root):
    write_text(root / "Annotations/1.xml", voc(from_one(*FIRST), name="b.png"))
    write_text(root / "Annotations/2.xml", voc(name="a.png"))
    assert np.array_equal(masks_of(root, "Annotations")["b.png"], rectangle(FIRST))


def test_voc_files_mean_the_images_beside_them(tmp_path):
    root = write_images(tmp_path / "parts", "train/a.png", "val/a.png")
    write_text(root / "images/train/a.xml", voc())
    write_text(root / "images/val/a.xml", voc(from_one(*FIRST)))
    labels = prepare_annotated(root, ".").set_index("path")["label"]
    assert labels.to_dict() == {"images/train/a.png": 0, "images/val/a.png": 1}
