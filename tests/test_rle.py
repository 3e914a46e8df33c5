"""Run-length masks, exact both ways, and their tables: every form is read, written back or refused by row."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from defects.data import rle
from defects.data.rle import (
    all_pairs,
    check_runs,
    read_annotations,
    read_rle_table,
    table_form,
    write_rle_table,
)
from defects.messages import UserError

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1]))


def _slow_encode(mask: np.ndarray) -> str:
    """Pixel by pixel, as the competition describes it."""
    runs = []
    previous = 0
    for position, pixel in enumerate(mask.flatten(order="F"), start=1):
        if pixel and not previous:
            runs.append([position, 0])
        if pixel:
            runs[-1][1] += 1
        previous = pixel
    return " ".join(f"{start} {length}" for start, length in runs)


def _slow_decode(runs: str, shape: tuple[int, int]) -> np.ndarray:
    pixels = [0] * (shape[0] * shape[1])
    values = [int(value) for value in runs.split()]
    for start, length in zip(values[::2], values[1::2], strict=True):
        for position in range(start, start + length):
            pixels[position - 1] = 1
    return np.array(pixels, np.uint8).reshape(shape, order="F")


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 1, 1], [0, 1, 0]], "3 3"),
        ([[1, 0, 0], [0, 0, 1]], "1 1 6 1"),
        ([[0, 0], [0, 0]], ""),
        ([[1, 1], [1, 1]], "1 4"),
        ([[0, 1, 0, 1]], "2 1 4 1"),
    ],
)
def test_encode_and_decode_by_hand(mask, runs):
    mask = np.array(mask)
    for kind in (mask.astype(bool), mask.astype(np.uint8), mask.astype(np.uint8) * 255):
        assert rle.encode(kind) == runs
    decoded = rle.decode(runs, mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    assert np.array_equal(decoded, mask)


@given(MASKS)
def test_encode_and_decode_like_pixel_by_pixel(mask):
    runs = rle.encode(mask)
    assert runs == _slow_encode(mask)
    assert np.array_equal(rle.decode(runs, mask.shape), mask)
    assert np.array_equal(_slow_decode(runs, mask.shape), mask)


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(0, 4))
@settings(max_examples=50)
def test_decode_any_sorted_runs_even_if_they_touch(steps, gap):
    """Every second step is a run; a step of another tool may split one run into two that touch."""
    ends = np.cumsum([0, *steps])
    runs = " ".join(f"{start + 1} {end - start}" for start, end in zip(ends[:-1], ends[1:], strict=True))
    shape = (1, int(ends[-1]) + gap + 1)
    assert rle.decode(runs, shape).sum() == ends[-1]
    assert np.array_equal(rle.decode(runs, shape), _slow_decode(runs, shape))


def test_encode_a_mask_that_is_not_contiguous():
    mask = np.arange(60).reshape(6, 10) % 7 == 0
    assert rle.encode(mask[::2, 1::3]) == _slow_encode(mask[::2, 1::3])


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("1", "odd number of values"),
        ("1 2 3", "odd number of values"),
        ("a b", "whole numbers"),
        ("1.5 2", "whole numbers"),
        ("1_0 2", "whole numbers"),
        ("١ 2", "whole numbers"),
        ("5-3 1", "whole numbers"),
        ("99999999999999999999 1", "whole numbers"),
        ("nan", "whole numbers"),
        ("1 0", "length 0 is below 1"),
        ("3 -2", "length -2 is below 1"),
        ("0 2", "start 0 is below 1"),
        ("-4 2", "start -4 is below 1"),
        ("1 3 3 1", "overlap"),
        ("2 2 2 2", "not sorted"),
        ("4 1 1 1", "not sorted"),
        ("6 2", "past the last of 6 pixels (3x2)"),
        ("7 1", "past the last"),
        ("2 9223372036854775807", "past the last"),
        ("1 9223372036854775807 3 1", "overlap"),
    ],
)
def test_decode_gives_a_reason_for_what_is_no_mask(runs, reason):
    with pytest.raises(ValueError) as caught:
        rle.decode(runs, (2, 3))
    assert reason in str(caught.value)


def test_decode_the_last_pixel():
    assert rle.decode("409600 1", (256, 1600))[-1, -1] == 1
    with pytest.raises(ValueError, match="past"):
        rle.decode("409600 2", (256, 1600))


# --- tables ----------------------------------------------------------------------------------------------

CLASSES = ["1", "2", "3", "4"]
OLD = "ImageId_ClassId,EncodedPixels\nb.jpg_1,\nb.jpg_2,3 4\na_2.jpg_1,1 1 5 2\na_2.jpg_2,\n"
NEW = "ImageId,ClassId,EncodedPixels\nb.jpg,2,3 4\na_2.jpg,1,1 1 5 2\n"
MARKED = [("b.jpg", "2", "3 4"), ("a_2.jpg", "1", "1 1 5 2")]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "train.csv"


def _rows(table: pd.DataFrame) -> list[tuple]:
    return list(table.itertuples(index=False, name=None))


def _error(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_rle_table(path, CLASSES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "form", "rows"),
    [
        (OLD, "joined", [("b.jpg", "1", ""), MARKED[0], MARKED[1], ("a_2.jpg", "2", "")]),
        (NEW, "split", MARKED),
        ("EncodedPixels,ImageId,ClassId\n3 4,b.jpg,2\n1 1 5 2,a_2.jpg,1\n", "split", MARKED),
        ("\ufeff" + NEW.replace("\n", "\r\n"), "split", MARKED),
        (
            "ImageId_ClassId,EncodedPixels\nNA_1,\n007_2,1 1\n",
            "joined",
            [("NA", "1", ""), ("007", "2", "1 1")],
        ),
        ("ImageId,ClassId,EncodedPixels\nu\u0308,1,\n", "split", [("ü", "1", "")]),
        ("ImageId,ClassId,EncodedPixels\n", "split", []),
    ],
)
def test_read_rle_table_of_every_form(path, text, form, rows):
    path.write_text(text, encoding="utf-8", newline="")
    assert table_form(path) == form
    assert _rows(read_rle_table(path, CLASSES)) == rows


def test_read_rle_table_without_classes(path):
    path.write_text("ImageId,EncodedPixels,ClassId\nb.jpg,1 409600,0\na.jpg,1 409600,0\n")
    expected = [(name, target, "1 409600") for name in ("b.jpg", "a.jpg") for target in CLASSES]
    assert _rows(read_rle_table(path, CLASSES)) == expected


def test_read_rle_table_with_a_class_0(path):
    path.write_text("ImageId,EncodedPixels,ClassId\nb.jpg,1 4,0\n")
    assert _rows(read_rle_table(path, ["0", "1"])) == [("b.jpg", "0", "1 4")]


@pytest.mark.parametrize("form", ["joined", "split"])
def test_write_rle_table_and_read_it_again(path, form):
    path.write_text(OLD)
    table = read_rle_table(path, CLASSES)
    write_rle_table(path, table, form)
    assert table_form(path) == form
    assert read_rle_table(path, CLASSES).equals(table)
    if form == "joined":
        assert path.read_text() == OLD


def test_all_pairs_of_images_and_classes():
    table = pd.DataFrame(MARKED, columns=["image_id", "target", "runs"])
    assert _rows(all_pairs(table, ["a_2.jpg", "b.jpg", "c.jpg"], ["1", "2"])) == [
        ("a_2.jpg", "1", "1 1 5 2"),
        ("a_2.jpg", "2", ""),
        ("b.jpg", "1", ""),
        ("b.jpg", "2", "3 4"),
        ("c.jpg", "1", ""),
        ("c.jpg", "2", ""),
    ]


HEAD = "ImageId,ClassId,EncodedPixels\n"
JOINED = "ImageId_ClassId,EncodedPixels\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "a,1,1 1\nb,0,2 2\n", "row 3: class 0 is none of 1, 2, 3, 4"),
        (HEAD + "a,0,1 1\nb,0,2 2\n", "row 2: class 0"),
        (HEAD + "a,5,1 1\n", "row 2: class 5"),
        (HEAD + "a,,1 1\n", "row 2: class "),
        (HEAD + "a,1,1 1\na,2,\na,1,4 1\n", "row 4: a with class 1 came before"),
        (HEAD + "a,0,1 1\nb,0,1 1\na,0,1 1\n", "row 4: a with class 0 came before"),
        (HEAD + "a,1,1 1\n,1,1 1\n", "row 3: the image has no name"),
        (HEAD + "a,1,1 1,7\n", "more than 3 values"),
        (JOINED + "a.jpg_1,\na.jpg,1 1\n", "row 3: the id 'a.jpg' is not of the kind NAME.jpg_CLASS"),
        (JOINED + "a.jpg_,\n", "row 2: the id 'a.jpg_'"),
        (JOINED + "_1,\n", "row 2: the id '_1'"),
        (JOINED + "a.jpg_5,\n", "row 2: class 5"),
        (JOINED + "a.jpg_1,\na.jpg_1,\n", "row 3: a.jpg with class 1 came before"),
        (
            "ImageId,EncodedPixels\na,1 1\n",
            "columns ImageId, EncodedPixels; expected ImageId_ClassId",
        ),
        ("ImageId;ClassId;EncodedPixels\na;1;1 1\n", "expected"),
        (",Area," + HEAD + "0,9,a,1,1 1\n", "one without a name, Area; remove them"),
        ("", "not a readable CSV"),
    ],
)
def test_read_rle_table_refuses_rows_that_mean_nothing(path, text, expected):
    assert expected in _error(path, text)


def test_read_rle_table_of_a_missing_file(path):
    with pytest.raises(UserError, match=r"train\.csv does not exist"):
        read_rle_table(path, CLASSES)


@pytest.mark.parametrize("kind", [dict, pd.Series])
@pytest.mark.parametrize(
    ("runs", "reason"),
    [("1 2 2 1", "overlap"), ("11 3", "past the last of 12 pixels (4x3)"), ("5", "odd"), ("x 1", "whole")],
)
def test_check_runs_names_the_first_bad_row_and_counts_more(path, kind, runs, reason):
    path.write_text(f"{HEAD}a,1,12 1\na,2,\nb,3,{runs}\nb,1,0 1\nc,1,1 1\n")
    sizes = {"a": (3, 4), "b": (3, 4)}
    with pytest.raises(UserError) as caught:
        check_runs(read_rle_table(path, CLASSES), kind(sizes), path)
    assert f"{path}: row 4 (b, class 3): " in str(caught.value)
    assert reason in str(caught.value)
    assert "and 2 more such rows" in str(caught.value)


def test_check_runs_of_good_runs(path):
    path.write_text(OLD)
    check_runs(read_rle_table(path, CLASSES), {"a_2.jpg": (3, 4), "b.jpg": (2, 3)}, path)


# --- annotations, as people write them ------------------------------------------------------------------

IMAGES = ["a.jpg", "b.jpg", "c.jpg"]


def _annotated(path: Path, text: str, classes: list[str] = CLASSES, **options) -> dict[tuple[str, str], str]:
    """Runs that are not empty, by image and class; rows of one pair united."""
    path.write_text(text, encoding="utf-8")
    table = read_annotations(path, classes, IMAGES, **options)
    pairs = all_pairs(table, IMAGES, sorted({*classes, *table["target"]}))
    return {(row.image_id, row.target): row.runs for row in pairs.itertuples() if row.runs}


@pytest.mark.parametrize("text", ["1.0", "1", " 1 ", "01", "+1.00", '"1,0"'])
def test_read_annotations_with_class_ids_as_programs_write_them(path, text):
    assert _annotated(path, f"{HEAD}a.jpg,{text},5 2\n") == {("a.jpg", "1"): "5 2"}


def test_read_annotations_with_class_names_in_another_case(path):
    assert _annotated(path, f"{HEAD}a.jpg,Pitted_Surface,5 2\n", ["pitted_surface"]) == {
        ("a.jpg", "pitted_surface"): "5 2"
    }


@pytest.mark.parametrize("text", ["-1", "0", "nan", "NaN", "None", "null", "", "NA", "[]"])
def test_read_annotations_of_no_mask(path, text):
    assert _annotated(path, f"{HEAD}a.jpg,1,{text}\nb.jpg,2,3 4\n") == {("b.jpg", "2"): "3 4"}
    assert _annotated(path, f"{JOINED}a.jpg_1,{text}\nb.jpg_2,3 4\n") == {("b.jpg", "2"): "3 4"}


@pytest.mark.parametrize("name", ["", "0", "-1", "nan", "None"])
def test_read_annotations_of_clean_images_without_class(path, name):
    path.write_text(f"{HEAD}a.jpg,{name},\nb.jpg,1,3 4\n")
    table = read_annotations(path, ["1", "2"], IMAGES)
    assert _rows(table) == [("a.jpg", "1", ""), ("a.jpg", "2", ""), ("b.jpg", "1", "3 4")]


def test_read_annotations_refuses_a_mask_without_a_class(path):
    path.write_text(f"{HEAD}a.jpg,0,3 4\n")
    with pytest.raises(UserError, match="row 2: class 0 is none of"):
        read_annotations(path, CLASSES, IMAGES)


@pytest.mark.parametrize(
    ("parts", "united"),
    [
        (["1 2", "5 2"], "1 2 5 2"),
        (["5 2", "1 2"], "1 2 5 2"),
        (["1 4", "3 4"], "1 6"),
        (["1 2", "3 2"], "1 4"),
        (["1 9", "3 2"], "1 9"),
        (["1 2", "1 2", "", "7 1"], "1 2 7 1"),
        (["1 1 9 1", "5 1 9 3"], "1 1 5 1 9 3"),
    ],
)
def test_all_pairs_unites_several_rows_of_one_mask(path, parts, united):
    assert _annotated(path, HEAD + "".join(f"a.jpg,1,{part}\n" for part in parts)) == {("a.jpg", "1"): united}


def test_unite_is_the_union_of_masks(path):
    masks = [np.random.default_rng(seed).random((9, 7)) > 0.6 for seed in range(3)]
    assert rle.unite([rle.encode(mask) for mask in masks]) == rle.encode(np.logical_or.reduce(masks))


def test_check_runs_names_rows_that_cannot_be_united(path):
    path.write_text(f"{HEAD}a.jpg,1,1 2\na.jpg,1,5 x\n")
    table = read_annotations(path, CLASSES, IMAGES)
    all_pairs(table, IMAGES, CLASSES)
    with pytest.raises(UserError, match="row 3 "):
        check_runs(table, dict.fromkeys(IMAGES, (3, 4)), path)


def test_read_annotations_of_ids_without_suffix(path):
    assert _annotated(path, f"{HEAD}a,1,5 2\nb.png,2,3 4\n") == {("a.jpg", "1"): "5 2", ("b.jpg", "2"): "3 4"}
    assert _annotated(path, f"{JOINED}a_1,5 2\n") == {("a.jpg", "1"): "5 2"}


@pytest.mark.parametrize("suffix", [".jpg", ""])
@pytest.mark.parametrize(
    "name", ["pitted_surface", "rolled-in scale", "3_yueyawan", "개재물", "a, b", "x.y", 'the "1"']
)
def test_read_annotations_with_class_names_of_all_kinds(path, name, suffix):
    quoted = name.replace('"', '""')
    expected = {("a.jpg", name): "5 2"}
    assert _annotated(path, f'{HEAD}a{suffix},"{quoted}",5 2\n', ["surface", name]) == expected
    assert _annotated(path, f'{JOINED}"a{suffix}_{quoted}",5 2\n', ["scratch", name]) == expected


def test_read_annotations_of_a_joined_id_with_several_meanings(path):
    classes = ["surface", "pitted_surface"]
    path.write_text(f"{JOINED}x.jpg_pitted_surface,1 1\n")
    assert _rows(read_rle_table(path, classes)) == [("x.jpg", "pitted_surface", "1 1")]
    path.write_text(f"{JOINED}x_pitted_surface,1 1\n")
    assert _rows(read_annotations(path, classes, ["x_pitted"])) == [("x_pitted", "surface", "1 1")]
    with pytest.raises(
        UserError, match=r"row 2: the id 'x_pitted_surface' may mean image x_pitted, class surface or"
    ):
        read_annotations(path, classes, IMAGES)


def test_read_annotations_of_classes_that_are_not_listed(path):
    text = f"{HEAD}a.jpg,1,5 2\na.jpg,5,7 1\n"
    assert _annotated(path, text, unlisted="drop") == {("a.jpg", "1"): "5 2", ("a.jpg", "5"): "7 1"}
    with pytest.raises(UserError, match=r"row 3: class 5 is none of .*data\.unlisted_classes=drop"):
        read_annotations(path, CLASSES, IMAGES)


@pytest.mark.parametrize("head", ["imageid;classid;encodedpixels\n", "Image_Id\tClass Id\tEncoded Pixels\n"])
def test_read_annotations_saved_by_other_programs(path, head):
    separator = ";" if ";" in head else "\t"
    text = head + separator.join(["a.jpg", "1", "5 2"]) + "\r\n"
    assert _annotated(path, text) == {("a.jpg", "1"): "5 2"}


@pytest.mark.parametrize("seed", range(10))
def test_read_annotations_of_random_masks_in_parts(path, seed):
    """Regions of a mask in rows of their own, in any order, saved with any separator and encoding."""
    random = np.random.default_rng(seed)
    masks = {(image, name): random.random((6, 5)) < 0.3 for image in IMAGES for name in CLASSES[:2]}
    rows = []
    for (image, name), mask in masks.items():
        part_of = random.integers(0, 3, mask.shape)
        parts = [rle.encode(mask & (part_of == number)) for number in range(3)]
        rows += [(image, f"{name}.0", runs or "-1") for runs in parts]
    separator = random.choice([",", ";", "\t"])
    lines = [separator.join(rows[place]) for place in random.permutation(len(rows))]
    text = separator.join(["ImageId", "ClassId", "EncodedPixels"]) + "\r\n" + "\r\n".join(lines)
    path.write_bytes(text.encode(str(random.choice(["utf-8", "utf-8-sig", "utf-16"]))))
    table = all_pairs(read_annotations(path, CLASSES, IMAGES), IMAGES, CLASSES[:2])
    for row in table.itertuples():
        expected = masks[row.image_id, row.target]
        np.testing.assert_array_equal(rle.decode(row.runs, (6, 5)), expected)
