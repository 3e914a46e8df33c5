"""The Severstal layout: what prepare.py makes of it, and what it refuses in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import defective, texture, write_png

from defects.data import rle
from defects.data.index import IMAGE_COLUMNS, sample_ids
from defects.stages import ensure_images
from defects.submission.masks import expected_rows

CLASSES = ["1", "2", "3", "4"]
COLUMNS = [f"defect_{name}" for name in CLASSES]
TRAIN = "ImageId,ClassId,EncodedPixels\n1.png,3,1 5\n1.png,1,9 2 20 3\n3.png,2,1024 1\n"
TEST = ["8.png", "9.png"]


def _sample(rows: list[str]) -> str:
    return "\n".join(["ImageId_ClassId,EncodedPixels", *(f"{row},1 1" for row in rows)]) + "\n"


@pytest.fixture
def root(tmp_path) -> Path:
    """Four training images of 32x32 (0 and 2 are clean), two test images, a sample of the older form."""
    root = tmp_path / "steel"
    for i in range(4):
        write_png(root / "train_images" / f"{i}.png", texture(i))
    for name in TEST:
        write_png(root / "test_images" / name, texture(int(name[0])))
    (root / "train.csv").write_text(TRAIN)
    (root / "sample.csv").write_text(_sample([f"{name}_{target}" for name in TEST for target in CLASSES]))
    return root


@pytest.fixture
def configured(config_file) -> Callable[..., Path]:
    def write(root: Path, **changes) -> Path:
        data = {"source": "severstal", "classes": CLASSES, "sample_submission": "sample.csv"}
        return config_file(root, data=data | changes)

    return write


@pytest.fixture
def prepared(run_script, configured, output) -> Callable[..., pd.DataFrame]:
    """prepared(root, **data) -> images.csv by image_id, as src/prepare.py wrote it."""

    def run(root: Path, **changes) -> pd.DataFrame:
        code, _, stderr = run_script("prepare.py", "--config", configured(root, **changes))
        assert (code, stderr) == (0, "")
        return pd.read_csv(output / "images.csv", dtype=str, keep_default_na=False).set_index("image_id")

    return run


@pytest.fixture
def refused(fails_with_one_line, configured, output) -> Callable[..., str]:
    """refused(root, **data) -> the one error line of src/prepare.py; nothing is written."""

    def run(root: Path, **changes) -> str:
        message = fails_with_one_line("prepare.py", "--config", configured(root, **changes))
        assert not list(output.glob("[!.]*"))
        return message

    return run


# --- what is written -------------------------------------------------------------------------------------


def test_severstal_images_csv(root, prepared):
    images = prepared(root)
    assert images.columns.tolist() == [*IMAGE_COLUMNS[1:], *COLUMNS]
    assert images.index.tolist() == ["0.png", "1.png", "2.png", "3.png", *TEST]
    assert images["label"].tolist() == ["0", "1", "0", "1", "", ""]
    assert images["kind"].tolist() == ["", "1+3", "", "2", "", ""]
    assert images.loc["1.png", COLUMNS].tolist() == ["9 2 20 3", "", "1 5", ""]
    assert (images.loc[["0.png", "2.png", *TEST], COLUMNS] == "").all(axis=None)
    assert (images["mask_path"] == "").all()


def test_severstal_runs_come_back_as_the_mask_they_were(root, prepared):
    mask = texture(50) > 140
    (root / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\n0.png,4,{rle.encode(mask)}\n")
    images = prepared(root)
    assert np.array_equal(rle.decode(images.loc["0.png", "defect_4"], (32, 32)), mask)


def test_severstal_both_forms_of_train_csv_say_the_same(root, prepared):
    new = prepared(root)
    table = pd.read_csv(root / "train.csv", dtype=str).set_index(["ImageId", "ClassId"])["EncodedPixels"]
    rows = [f"{i}.png_{target},{table.get((f'{i}.png', target), '')}" for i in range(4) for target in CLASSES]
    (root / "train.csv").write_text("\n".join(["ImageId_ClassId,EncodedPixels", *rows]) + "\n")
    assert prepared(root).equals(new)


def test_severstal_load_images_keeps_the_columns_and_prepares_again_for_other_classes(
    root, make_config, capsys
):
    options = ["data.source=severstal", "data.sample_submission=sample.csv"]
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n1.png,1,1 5\n")
    images = ensure_images(make_config(root, *options, "data.classes=[1,2,3,4]"))
    assert images["defect_1"].tolist() == ["", "1 5", "", "", "", ""]
    assert images["defect_4"].tolist() == [""] * 6
    capsys.readouterr()
    images = ensure_images(make_config(root, *options, "data.sample_submission=null", "data.classes=[1,2]"))
    assert "preparing the data first" in capsys.readouterr().out
    assert "defect_4" not in images


def test_severstal_a_class_that_never_occurs_is_a_note(root, configured, run_script):
    done = run_script("prepare.py", "--config", configured(root))
    assert done.code == 0
    assert "note: no training image has a defect of class 4" in done.stdout


def test_severstal_without_test_images(root, prepared):
    for path in (root / "test_images").iterdir():
        path.unlink()
    (root / "test_images").rmdir()
    (root / "sample.csv").unlink()
    assert prepared(root).index.tolist() == [f"{i}.png" for i in range(4)]


def test_severstal_a_name_that_train_and_test_share(root, prepared):
    """Test images keep their names, which the submission needs; sizes tell the two apart."""
    write_png(root / "test_images" / "1.png", texture(70, 16))
    (root / "train.csv").write_text(TRAIN.replace("1.png,3,1 5", "1.png,3,1020 5"))
    images = prepared(root, sample_submission=None)
    assert images.loc["1.png", ["split", "defect_3"]].tolist() == ["test", ""]
    assert images.loc["train_images/1.png", ["split", "defect_3"]].tolist() == ["train", "1020 5"]


@pytest.mark.parametrize("form", ["joined", "split"])
def test_severstal_sample_ids_are_the_images_of_the_sample_in_its_order(root, make_config, form):
    if form == "split":
        (root / "sample.csv").write_text("ImageId,EncodedPixels,ClassId\n9.png,1 4,0\n8.png,1 4,0\n")
    options = ["data.source=severstal", "data.sample_submission=sample.csv", "data.classes=[1,2,3,4]"]
    config = make_config(root, *options)
    ids = sample_ids(config.data, ensure_images(config))
    assert ids.tolist() == ids.index.tolist() == (TEST if form == "joined" else TEST[::-1])


def test_severstal_several_rows_of_one_image_and_class_are_united(root, configured, run_script, output):
    (root / "train.csv").write_text(f"{TRAIN}1.png,3,4 9\n1.png,3,100 1\n")
    done = run_script("prepare.py", "--config", configured(root))
    assert done.code == 0
    assert "note: 2 rows of train.csv mark more of an image and class, and are united" in done.stdout
    images = pd.read_csv(output / "images.csv", dtype=str, keep_default_na=False).set_index("image_id")
    assert images.loc["1.png", "defect_3"] == "1 12 100 1"


def test_severstal_a_table_as_spreadsheets_save_it(root, prepared):
    expected = prepared(root)
    text = "ClassId;ImageId;EncodedPixels;\n3.0;1;1 5;\n1.0;1;9 2 20 3;\n2.0;3;1024 1;\n-1;2;;\n;0;nan;\n"
    (root / "train.csv").write_text(text, encoding="utf-16")
    assert prepared(root).equals(expected)


NAMED = ["pitted_surface", "rolled-in scale", "3_yueyawan", "개재물"]


def test_severstal_classes_with_blanks_underscores_and_other_letters(root, prepared, make_config):
    text = (
        TRAIN.replace(",3,", f",{NAMED[2]},").replace(",1,", f",{NAMED[0]},").replace(",2,", f",{NAMED[1]},")
    )
    (root / "train.csv").write_text(text + f"0.png,{NAMED[3]},1 1\n")
    (root / "sample.csv").write_text(_sample([f"{name}_{target}" for name in TEST for target in NAMED]))
    images = prepared(root, classes=NAMED)
    assert images["kind"].tolist() == [NAMED[3], f"{NAMED[0]}+{NAMED[2]}", "", NAMED[1], "", ""]
    assert images.loc["3.png", "defect_rolled-in scale"] == "1024 1"


def test_severstal_classes_that_are_not_listed_can_be_left_out(root, configured, run_script, refused, output):
    """Images with such defects alone are no normal ones, so they go too."""
    (root / "train.csv").write_text(TRAIN + "2.png,rust,1 1\n3.png,rust,5 5\n")
    message = refused(root)
    assert "row 5: class rust is none of 1, 2, 3, 4" in message
    assert "data.unlisted_classes=drop" in message
    done = run_script("prepare.py", "--config", configured(root, unlisted_classes="drop"))
    assert "note: 2 rows of the classes rust, which data.classes does not list, are left out" in done.stdout
    images = pd.read_csv(output / "images.csv", dtype=str, keep_default_na=False).set_index("image_id")
    assert images.index.tolist() == ["0.png", "1.png", "3.png", *TEST]
    assert images.loc["3.png", COLUMNS].tolist() == ["", "1024 1", "", ""]


def test_severstal_masks_among_the_images_are_no_images(root, prepared):
    write_png(root / "train_images" / "1_mask.png", defective(1)[1])
    assert prepared(root).index.tolist() == ["0.png", "1.png", "2.png", "3.png", *TEST]


@pytest.mark.parametrize("form", ["joined", "split"])
def test_severstal_sample_ids_may_lack_the_suffix(root, make_config, form):
    rows = [f"{name[0]}_{target}" for name in TEST for target in CLASSES]
    text = _sample(rows) if form == "joined" else "ImageId,EncodedPixels,ClassId\n8,1 4,0\n9,1 4,0\n"
    (root / "sample.csv").write_text(text)
    options = ["data.source=severstal", "data.sample_submission=sample.csv", "data.classes=[1,2,3,4]"]
    config = make_config(root, *options)
    rows, _ = expected_rows(config, ensure_images(config))
    assert rows["image_id"].unique().tolist() == TEST
    assert rows["written_id"].unique().tolist() == ["8", "9"]


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("2.png,1,3 2 4 1", "train.csv: row 5 (2.png, class 1): runs overlap"),
        ("2.png,1,9 1 3 1", "row 5 (2.png, class 1): runs are not sorted"),
        ("2.png,1,3", "row 5 (2.png, class 1): odd number of values"),
        ("2.png,1,3 x", "row 5 (2.png, class 1): not made of whole numbers"),
        ("2.png,1,0 1", "row 5 (2.png, class 1): run start 0 is below 1"),
        ("2.png,1,3 0", "row 5 (2.png, class 1): run length 0 is below 1"),
        ("2.png,1,1024 2", "row 5 (2.png, class 1): a run ends past the last of 1024 pixels (32x32)"),
        ("2.png,0,1 2", "train.csv: row 5: class 0 is none of 1, 2, 3, 4"),
        ("2.png,5,1 2", "train.csv: row 5: class 5 is none of 1, 2, 3, 4"),
        (
            "7.png,2,7 2\n6.png,1,1 1",
            "row 5: 7.png is not in train_images (and 1 more such images)",
        ),
        ("8.png,2,7 2", "train.csv: row 5: 8.png is not in train_images: add it"),
    ],
)
def test_severstal_rows_of_train_csv(root, refused, row, expected):
    (root / "train.csv").write_text(f"{TRAIN}{row}\n")
    assert expected in refused(root)


def test_severstal_an_image_of_another_size_than_its_runs(root, refused):
    write_png(root / "train_images" / "3.png", texture(3, 16))
    message = refused(root)
    assert "row 4 (3.png, class 2): a run ends past the last of 256 pixels (16x16)" in message


def test_severstal_all_bad_rows_are_counted(root, refused):
    (root / "train.csv").write_text(TRAIN + "0.png,1,1 1 1 1\n0.png,2,5\n2.png,1,9999 1\n")
    assert "row 5 (0.png, class 1): runs are not sorted (and 2 more such rows)" in refused(root)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([f"8.png_{i}" for i in CLASSES], "1 test images are not listed in it: 9.png"),
        ([f"{name}_{i}" for name in TEST for i in CLASSES][:-1], "9.png has 3 rows for 4 classes"),
        (
            [f"{name}_{i}" for name in [*TEST, "7.png"] for i in CLASSES],
            "images are not on disk: 7.png",
        ),
        ([f"{name}_{i}" for name in [*TEST, "9.png"] for i in CLASSES], "row 10: 9.png with class 1 came"),
        ([f"{name}_{i}" for name in TEST for i in [*CLASSES, "5"]], "row 6: class 5"),
        (TEST, "row 2: the id '8.png' is not of the kind"),
    ],
)
def test_severstal_samples_that_do_not_fit(root, refused, rows, expected):
    (root / "sample.csv").write_text(_sample(rows))
    message = refused(root)
    assert expected in message
    assert "sample.csv" in message


def test_severstal_files_that_are_missing(root, refused):
    (root / "sample.csv").rename(root / "elsewhere.csv")
    assert "sample.csv does not exist" in refused(root)
    (root / "train.csv").rename(root / "elsewhere.csv")
    assert "train.csv does not exist" in refused(root)
    (root / "train_images").rename(root / "elsewhere")
    assert "train_images is not a folder" in refused(root)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"classes": []}, "data.classes is empty"),
        ({"classes": ["1", "1"]}, "a class is named twice"),
        ({"classes": ["a+b"]}, "data.classes.0=a+b: a class name may hold any letters but +"),
        ({"classes": ["defect"]}, "data.classes.0=defect: name a class otherwise"),
        ({"classes": [" a"]}, "none at its ends"),
        ({"source": "folders", "folders": {"normal": "train_images"}}, "leave data.classes empty"),
    ],
)
def test_severstal_classes_that_do_not_fit(root, refused, changes, expected):
    assert expected in refused(root, **changes)
