"""Label Studio's exports as a source of masks."""

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

UPLOAD = "/data/upload/1/0a1b2c3d-a.png"


def percent(x: float, y: float) -> list[float]:
    return [100 * x / WIDTH, 100 * y / HEIGHT]


def box(x: float, y: float, width: float, height: float, **more) -> dict:
    left, top = percent(x, y)
    across, down = percent(width, height)
    value = {"x": left, "y": top, "width": across, "height": down, "rotation": 0} | more
    return value | {"rectanglelabels": ["scratch"]}


def polygon(box: tuple[int, int, int, int], label: str = "scratch") -> dict:
    return {"points": [percent(x, y) for x, y in corners(*box)], "closed": True, "polygonlabels": [label]}


def pack(mask: np.ndarray) -> list[int]:
    """A brush mask, each value as a block of its own."""
    values = np.repeat(mask.astype(int).ravel() * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + 4 * f"{2:04b}" + "".join(f"000000{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def result(value: dict, **more) -> dict:
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return sizes | {"value": value, "type": "labels", "id": "x"} | more


def task(*values: dict, image: str = UPLOAD, **changes) -> dict:
    answer = {"id": 1, "was_cancelled": False, "result": [result(value) for value in values]}
    return {"id": 7, "data": {"image": image}, "annotations": [answer], "predictions": []} | changes


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b.png")


HOLED = rectangle((1, 1, 8, 6)) & ~rectangle((3, 3, 2, 2))


@pytest.mark.parametrize(
    ("value", "mask"),
    [
        (box(*FIRST), rectangle(FIRST)),
        (polygon(SECOND), rectangle(SECOND)),
        ({"format": "rle", "rle": pack(HOLED), "brushlabels": ["scratch"]}, HOLED),
        # Turned by 90 degrees clockwise around its upper left corner, which comes to the upper right.
        (box(6, 3, 2, 4, rotation=90), rectangle(FIRST)),
    ],
)
def test_label_studio_marks(root, value, mask):
    write_values(root / "export.json", [task(value), task(image="/data/upload/1/0a1b2c3e-b.png")])
    masks = masks_of(root, "export.json")
    assert np.array_equal(masks["a.png"], mask)
    assert masks["b.png"] is None


def test_label_studio_marks_ellipses(root):
    (x, y), (across, down) = percent(6, 4), percent(4, 3)
    write_values(
        root / "export.json", [task({"x": x, "y": y, "radiusX": across, "radiusY": down, "rotation": 0})]
    )
    rows, columns = np.indices((HEIGHT, WIDTH)) + 0.5
    mask = masks_of(root, "export.json")["a.png"]
    assert np.array_equal(mask, ((rows - 4) / 3) ** 2 + ((columns - 6) / 4) ** 2 <= 1)


def test_label_studio_reads_its_short_form(root):
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    row = {"id": 1, "image": UPLOAD, "label": [box(*FIRST) | sizes], "annotator": 1, "annotation_id": 3}
    empty = {"id": 2, "image": "/data/upload/1/0a1b2c3e-b.png", "annotator": 1, "annotation_id": 4}
    write_values(root / "export.json", [row, empty])
    masks = masks_of(root, "export.json")
    assert np.array_equal(masks["a.png"], rectangle(FIRST)) and masks["b.png"] is None


@pytest.mark.parametrize(
    "image",
    [
        UPLOAD,
        "/data/local-files/?d=parts%2Fimages%2Fa.png",
        "/data/local-files/?d=C:\\parts\\a.png",
        "s3://bucket/images/a.png",
        "https://example.org/images/a.png?token=1",
        "a.png",
    ],
)
def test_label_studio_finds_images_by_their_address(root, image):
    write_values(root / "export.json", [task(box(*FIRST), image=image)])
    assert prepare_annotated(root, "export.json")["label"].to_dict() == {"a.png": 1}


def test_label_studio_leaves_out_what_nobody_has_submitted(root, capsys):
    skipped = {"was_cancelled": True, "result": []}
    guessed = [{"result": [result(box(*SECOND))]}]
    tasks = [task(box(*FIRST)), task(image="b.png", annotations=[skipped], predictions=guessed)]
    write_values(root / "export.json", tasks)
    assert prepare_annotated(root, "export.json")["label"].to_dict() == {"a.png": 1}
    assert "1 tasks have no submitted annotation, and are left out: b.png" in capsys.readouterr().out


def test_label_studio_unites_several_answers(root, capsys):
    answers = [{"result": [result(box(*FIRST))]}, {"result": [result(polygon(SECOND))]}]
    write_values(root / "export.json", [task(annotations=answers)])
    assert np.array_equal(masks_of(root, "export.json")["a.png"], rectangle(FIRST, SECOND))
    assert "1 tasks have several annotations each" in capsys.readouterr().out


def test_label_studio_choices_are_no_marks(root):
    write_values(root / "export.json", [task({"choices": ["blurred"]})])
    assert prepare_annotated(root, "export.json")["label"].to_dict() == {"a.png": 0}


def test_label_studio_labels_become_classes(root):
    write_values(root / "export.json", [task(box(*FIRST), polygon(SECOND, "dent"))])
    images = prepare_annotated(root, "export.json", classes=["dent", "scratch"])
    assert (images.loc["a.png", ["defect_dent", "defect_scratch"]] != "").all()


def with_result(**changes) -> dict:
    return task(annotations=[{"result": [result(box(*FIRST)) | changes]}])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([with_result(image_rotation=90)], "task 7 (0a1b2c3d-a.png) has an image_rotation of 90"),
        ([with_result(value={"points": [[1, 2], [3]]})], "coordinates that are no numbers"),
        ([with_result(value={"rle": [1, 2]})], "an rle that ends too early"),
        ([with_result(value={"rle": pack(HOLED)}, original_width=None)], "without original_width"),
        ([with_result(value=box(*FIRST, rotation="x"))], "the rotation 'x'"),
        ([task(image="text to read")], "task 7 names no image"),
    ],
)
def test_label_studio_refuses(root, values, problem):
    write_values(root / "export.json", values)
    message = prepare_error(root, "export.json")
    assert problem in message and "export.json" in message


def test_label_studio_regions_without_an_area_are_refused(root):
    keypoint = {"x": 50, "y": 50, "width": 1, "keypointlabels": ["scratch"]}
    write_values(root / "marks.json", [task(keypoint)])
    assert "a region that marks no area (labels): only areas can be read" in prepare_error(root, "marks.json")


def test_label_studio_result_that_is_no_list_is_refused(root):
    values = task() | {"annotations": [{"id": 1, "result": "scratch"}]}
    write_values(root / "marks.json", [values])
    assert "a `result` that is no list" in prepare_error(root, "marks.json")


def test_label_studio_tasks_without_any_answer_are_refused(root):
    write_values(root / "marks.json", [task() | {"annotations": []}])
    message = prepare_error(root, "marks.json")
    assert "annotates no image; 1 tasks have no submitted annotation" in message
