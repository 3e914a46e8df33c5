"""src/prepare.py on good data: what images.csv holds, when it is made again, names of all kinds."""

import errno
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import raising, texture, write_png, write_sample, write_test_images
from PIL import Image

from defects.data import index as stage
from defects.data.index import IMAGE_COLUMNS, prepare, sample_ids
from defects.files import sha256
from defects.stages import ensure_images


@pytest.fixture
def root(make_dataset) -> Path:
    return make_dataset(defects=4, normals=6, tests=3)


# --- what is written -------------------------------------------------------------------------------------


def test_prepare_images_csv(root, config_file, run_script, output):
    code, stdout, stderr = run_script("prepare.py", "--config", config_file(root))
    assert (code, stderr) == (0, "")
    assert str(output / "images.csv") in stdout
    table = pd.read_csv(output / "images.csv", keep_default_na=False)
    assert list(table.columns) == IMAGE_COLUMNS
    assert table["image_id"].tolist() == sorted(table["image_id"])
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("test", ""): 3,
        ("train", "0"): 6,
        ("train", "1"): 4,
    }
    for row in table.itertuples():
        height, width = cv2.imread(str(root / row.path)).shape[:2]
        assert (row.height, row.width) == (height, width)
        assert row.sha256 == sha256(root / row.path)
    assert sorted(path.name for path in output.glob("[!.]*")) == [
        "images.csv",
        "inventory.json",
        "prepare.json",
    ]


def test_prepare_counts_are_printed_per_split_and_class(root, config_file, run_script):
    lines = run_script("prepare.py", "--config", config_file(root)).stdout.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["test", "unlabelled", "3"],
        ["train", "defect", "4"],
        ["train", "normal", "6"],
    ]


def test_prepare_sizes_are_those_of_the_turned_image(root, make_config):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(np.tile(texture(77), (1, 2))).save(root / "train/normal_images/tall.jpg", exif=exif)
    images = prepare(make_config(root)).set_index("image_id")
    assert images.loc["normal_images/tall.jpg", ["width", "height"]].tolist() == [32, 64]


def test_prepare_the_same_command_writes_the_same_bytes(root, make_config, output):
    contents = []
    for _ in range(2):
        prepare(make_config(root))
        contents.append({path.name: path.read_bytes() for path in output.glob("[!.]*")})
    assert contents[0] == contents[1]


def _mvtec(root: Path) -> dict:
    for i, name in enumerate(("train/good/0.png", "test/good/0.png", "test/cut/0.png", "test/hole/0.png")):
        write_png(root / name, texture(i))
    for kind in ("cut", "hole"):
        write_png(root / f"ground_truth/{kind}/0_mask.png", np.eye(32, dtype=np.uint8) * 255)
    return {"source": "mvtec", "sample_submission": None}


def test_prepare_mvtec_answers_go_to_their_own_file(tmp_path, config_file, run_script, output):
    path = config_file(tmp_path / "mvtec", data=_mvtec(tmp_path / "mvtec"))
    assert run_script("prepare.py", "--config", path).code == 0
    answers = pd.read_csv(output / "answers.csv", keep_default_na=False)
    assert answers[["image_id", "label", "kind"]].to_numpy().tolist() == [
        ["test/cut/0.png", 1, "cut"],
        ["test/good/0.png", 0, "good"],
        ["test/hole/0.png", 1, "hole"],
    ]
    images = pd.read_csv(output / "images.csv", keep_default_na=False)
    test = images[images["split"] == "test"]
    assert (test[["label", "mask_path", "kind"]] == "").all(axis=None)


def test_prepare_mvtec_as_training_data_has_no_answers(tmp_path, config_file, run_script, output):
    changes = _mvtec(tmp_path / "mvtec") | {"use_test_as": "train"}
    assert run_script("prepare.py", "--config", config_file(tmp_path / "mvtec", data=changes)).code == 0
    assert not (output / "answers.csv").exists()
    images = pd.read_csv(output / "images.csv", keep_default_na=False)
    assert images.groupby("label").size().to_dict() == {0: 2, 1: 2}


# --- loading, and preparing again ------------------------------------------------------------------------


def test_load_images_prepares_what_is_missing_and_says_so(root, make_config, capsys):
    config = make_config(root)
    first = ensure_images(config)
    assert "preparing the data first" in capsys.readouterr().out
    assert ensure_images(config).equals(first)
    assert capsys.readouterr().out == ""
    assert first["label"].dtype == "Int64"


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("data.bad_masks=drop", True),
        ("data.sample_submission=null", True),
        ("data.image_size=[64, 64]", False),
        ("data.symmetries=none", False),
        ("train.epochs=9", False),
    ],
)
def test_load_images_prepares_again_for_other_data_settings_only(root, make_config, capsys, override, again):
    ensure_images(make_config(root))
    capsys.readouterr()
    ensure_images(make_config(root, override))
    assert ("preparing the data first" in capsys.readouterr().out) == again


def test_an_interrupted_second_prepare_is_made_good(root, make_config, monkeypatch):
    """Tables of two settings must not be mixed: prepare.json vouches for the images.csv beside it."""
    config, other = make_config(root), make_config(root, "data.sample_submission=null")
    prepare(config)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(stage, "write_json", raising(OSError(errno.ENOSPC, "full")))
        write_png(root / "test/images/more.png", texture(99))
        prepare(other)
    (root / "test/images/more.png").unlink()
    assert "more.png" not in ensure_images(config)["image_id"].tolist()


# --- names -----------------------------------------------------------------------------------------------

NAMES = [
    "a b.png",
    "Prüf,stück.png",
    'x "y".png',
    "缺陷 1.png",
    "дефект.png",
    "007.png",
    "Bild\u202f2.png",
    "NA.png",
]


def test_prepare_spaces_and_letters_of_all_kinds_simply_work(root, config_file, run_script, make_config):
    write_test_images(root, NAMES)
    rows = ['"' + name.replace('"', '""') + '"' for name in NAMES]
    write_sample(root, rows)
    (root / "train/defect_images/defect_0.png").rename(root / "train/defect_images/Kratzer ä.png")
    (root / "train/defect_masks/defect_0.png").rename(root / "train/defect_masks/Kratzer ä.png")
    moved = root.rename(root.parent / "Prüf daten 缺")
    code, _, stderr = run_script("prepare.py", "--config", config_file(moved))
    assert (code, stderr) == (0, "")
    config = make_config(moved)
    images = ensure_images(config)
    assert sample_ids(config.data, images).index.tolist() == NAMES
    assert all((moved / path).is_file() for path in images["path"])


@pytest.mark.parametrize(("disk", "sample"), [("u\u0308 1.png", "ü 1.png"), ("ü 1.png", "u\u0308 1.png")])
def test_prepare_the_two_spellings_of_accented_names_are_one(root, make_config, disk, sample):
    write_test_images(root, [disk])
    write_sample(root, [sample])
    images = prepare(make_config(root)).set_index("image_id")
    assert images.loc["ü 1.png", "path"] == f"test/images/{disk}"  # the file is opened as it is called


def test_prepare_ids_that_look_like_numbers_stay_text(make_dataset, make_config):
    root = make_dataset(defects=2, normals=2, tests=1)
    (root / "train/normal_images/normal_0.png").rename(root / "train/normal_images/1e5.png")
    config = make_config(root)
    prepare(config)
    assert "normal_images/1e5.png" in ensure_images(config)["image_id"].tolist()


def test_prepare_a_sample_saved_by_a_spreadsheet(root, make_config):
    """Byte order mark, Windows line ends."""
    text = "ImageId,answer\r\ntest_2.png,0\r\ntest_0.png,0\r\ntest_1.png,0\r\n"
    (root / "test/sample_submission.csv").write_text(text, encoding="utf-8-sig", newline="")
    config = make_config(root)
    assert sample_ids(config.data, prepare(config)).tolist() == ["test_2.png", "test_0.png", "test_1.png"]
