"""Tables of run-length masks as annotations of the layout folders."""

import numpy as np
import pytest
from annotation_sets import (
    FIRST,
    SECOND,
    masks_of,
    prepare_annotated,
    prepare_error,
    rectangle,
    write_images,
    write_text,
)

from defects.data.rle import encode


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "parts", "a.png", "b_1.png", "c.png")


FIRST_RUNS = encode(rectangle(FIRST))
SECOND_RUNS = encode(rectangle(SECOND))


@pytest.mark.parametrize(
    "text",
    [
        f"ImageId,EncodedPixels\na.png,{FIRST_RUNS}\nb_1.png,\nc.png,-1\n",
        f"image_id;encoded pixels\na;{FIRST_RUNS}\n",
        f"ImageId,ClassId,EncodedPixels\na.png,1,{FIRST_RUNS}\n",
        f"ImageId_ClassId,EncodedPixels\na.png_1,{FIRST_RUNS}\na.png_2,\nb_1.png_1,\n",
    ],
)
def test_rle_csv_marks(root, text):
    write_text(root / "train.csv", text)
    masks = masks_of(root, "train.csv")
    assert np.array_equal(masks.pop("a.png"), rectangle(FIRST))
    assert set(masks.values()) == {None}


def test_rle_csv_unites_rows(root):
    write_text(root / "train.csv", f"ImageId,EncodedPixels\na.png,{FIRST_RUNS}\na.png,{SECOND_RUNS}\n")
    assert np.array_equal(masks_of(root, "train.csv")["a.png"], rectangle(FIRST, SECOND))


def test_rle_csv_classes(root):
    write_text(
        root / "train.csv",
        f"ImageId,ClassId,EncodedPixels\na.png,1.0,{FIRST_RUNS}\nb_1.png,2,{SECOND_RUNS}\n",
    )
    images = prepare_annotated(root, "train.csv", classes=["1", "2"])
    assert images["defect_1"].to_dict() == {"a.png": FIRST_RUNS, "b_1.png": "", "c.png": ""}
    assert images["defect_2"].to_dict() == {"a.png": "", "b_1.png": SECOND_RUNS, "c.png": ""}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ImageId,Label\na.png,1\n", "has the columns ImageId, Label; expected ImageId, EncodedPixels"),
        ("ImageId,EncodedPixels\na.png,5\n", "row 2 (a.png): odd number of values"),
        ("ImageId,EncodedPixels\n,5 2\n", "row 2: the image has no name"),
        ("ImageId,ClassId,EncodedPixels\na.png,,5 2\n", "row 2: the mask of a.png has no class"),
        (
            "ImageId,EncodedPixels\na.png,105 20\n",
            "images/a.png (a run ends past the last of 108 pixels (12x9))",
        ),
    ],
)
def test_rle_csv_refuses(root, text, problem):
    write_text(root / "train.csv", text)
    message = prepare_error(root, "train.csv")
    assert problem in message and "train.csv" in message
