"""src/prepare.py as a clumsy user runs it: one clear line, exit code 2, and nothing lost."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import raising, texture, write_png, write_sample, write_test_images

from defects.config_schema import ROOT
from defects.data.index import prepare

OLD = "an older table\n"


@pytest.fixture
def root(make_dataset) -> Path:
    return make_dataset(defects=4, normals=6, tests=3)


@pytest.fixture
def refused(fails_with_one_line, config_file, output) -> Callable[..., str]:
    """refused(root, *overrides) -> the one error line; asserts that an existing images.csv is untouched."""

    def run(root: Path, *overrides: str) -> str:
        output.mkdir(parents=True, exist_ok=True)
        (output / "images.csv").write_text(OLD)
        options = [part for override in overrides for part in ("--set", override)]
        message = fails_with_one_line("prepare.py", "--config", config_file(root), *options)
        assert (output / "images.csv").read_text() == OLD
        assert {path.name for path in output.glob("[!.]*")} <= {"images.csv", "unusable.txt"}
        return message

    return run


# --- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["train/defect_images", "train/normal_images", "train/defect_masks", "test/images"]
)
def test_prepare_an_empty_folder(root, refused, folder):
    for path in (root / folder).iterdir():
        path.unlink()
    assert str(root / folder) in refused(root)


@pytest.mark.parametrize("folder", ["", "train", "train/defect_images", "train/normal_images"])
def test_prepare_a_missing_folder(root, refused, folder):
    (root / folder).rename(root.parent / "elsewhere")
    assert str(root / folder) in refused(root)


def test_prepare_a_file_where_the_folder_should_be(root, refused, tmp_path):
    (tmp_path / "data.zip").touch()
    assert "data.zip" in refused(tmp_path / "data.zip")


def test_prepare_a_folder_without_images(root, refused):
    for path in (root / "train/normal_images").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert "normal_images holds no images" in refused(root)


# --- broken files ----------------------------------------------------------------------------------------


def test_prepare_all_broken_files_are_named(root, refused, output):
    """Three in the one line, all of them in a file."""
    whole = (root / "train/normal_images/normal_0.png").read_bytes()
    broken = {
        "train/normal_images/normal_0.png": b"",
        "train/normal_images/normal_1.png": whole[:100],
        "train/defect_images/defect_2.png": b"just text",
        "train/defect_masks/defect_3.png": whole[:-30],
        "test/images/test_1.png": b"\0" * 50,
    }
    for name, content in broken.items():
        (root / name).write_bytes(content)
    message = refused(root)
    assert "5 of 13 images cannot be used" in message
    assert f"and 2 more; all are listed in {output / 'unusable.txt'}" in message
    listed = (output / "unusable.txt").read_text()
    for name in broken:
        assert str(root / name) in listed
    assert "normal_2.png" not in listed


def test_prepare_decoders_do_not_talk_between_the_lines(root, config_file):
    """In its own process: libpng and libjpeg write to stderr past sys.stderr."""
    for name, cut in (("normal_0", -30), ("normal_1", -13), ("normal_2", -2)):
        path = root / "train/normal_images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:cut])
    done = subprocess.run(
        [sys.executable, ROOT / "src/prepare.py", "--config", config_file(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 3 of 13 images")
    assert done.stderr.count("\n") == 1


def test_prepare_what_systems_leave_behind_is_ignored(root, config_file, run_script, output):
    for name in (
        "train/normal_images/._normal_0.jpg",
        "test/images/.DS_Store",
        "train/defect_masks/Thumbs.db",
    ):
        (root / name).write_bytes(b"\0\5\26\7")
    (root / "test/images/.ipynb_checkpoints").mkdir()
    (root / "test/images/.ipynb_checkpoints/test_0-checkpoint.png").write_bytes(b"x")
    assert run_script("prepare.py", "--config", config_file(root)).code == 0
    assert len(pd.read_csv(output / "images.csv")) == 13


# --- masks -----------------------------------------------------------------------------------------------


def _lose_mask(path: Path) -> None:
    path.unlink()


def _shrink_mask(path: Path) -> None:
    write_png(path, np.full((16, 32), 255, np.uint8))


def _empty_mask(path: Path) -> None:
    write_png(path, np.zeros((32, 32), np.uint8))


BAD_MASKS = {
    "missing": (_lose_mask, ("no mask for", "defect_images/defect_1.png")),
    "other size": (_shrink_mask, ("defect_masks/defect_1.png", "is 32x16, its image 32x32")),
    "empty": (_empty_mask, ("defect_masks/defect_1.png", "marks no pixel")),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_prepare_a_bad_mask_is_refused(root, refused, kind):
    spoil, texts = BAD_MASKS[kind]
    spoil(root / "train/defect_masks/defect_1.png")
    message = refused(root)
    for text in (*texts, "data.bad_masks=drop"):
        assert text in message


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_prepare_a_bad_mask_is_dropped_on_request(root, make_config, kind):
    BAD_MASKS[kind][0](root / "train/defect_masks/defect_1.png")
    images = prepare(make_config(root, "data.bad_masks=drop"))
    masks = images[images["label"] == 1].set_index("image_id")["mask_path"]
    assert masks["defect_images/defect_1.png"] == ""
    assert (masks.drop("defect_images/defect_1.png") != "").all()


def test_prepare_all_bad_masks_are_named(root, refused):
    _empty_mask(root / "train/defect_masks/defect_0.png")
    _shrink_mask(root / "train/defect_masks/defect_3.png")
    message = refused(root)
    assert "defect_0.png marks no pixel" in message
    assert "defect_3.png is 32x16" in message


# --- one picture, two labels -----------------------------------------------------------------------------


@pytest.fixture
def contradicting(root) -> Path:
    for i in range(2):
        copied = (root / f"train/defect_images/defect_{i}.png").read_bytes()
        (root / f"train/normal_images/copy_{i}.png").write_bytes(copied)
    return root


def test_prepare_the_same_picture_in_both_classes_is_refused(contradicting, refused):
    message = refused(contradicting)
    for name in ("defect_images/defect_0.png", "normal_images/copy_0.png", "defect_images/defect_1.png"):
        assert name in message
    assert "data.contradictions=report" in message


def test_prepare_the_same_picture_in_both_classes_is_reported(contradicting, config_file, run_script, output):
    path = config_file(contradicting, data={"contradictions": "report"})
    code, stdout, _ = run_script("prepare.py", "--config", path)
    assert code == 0
    assert "note: the same picture is in both classes" in stdout
    assert "copy_1.png" in stdout
    assert len(pd.read_csv(output / "images.csv")) == 15


def test_prepare_copies_within_a_class_or_in_the_test_folder_are_no_contradiction(root, make_config):
    copied = (root / "train/defect_images/defect_0.png").read_bytes()
    (root / "test/images/test_0.png").write_bytes(copied)
    normal = (root / "train/normal_images/normal_0.png").read_bytes()
    (root / "train/normal_images/copy.png").write_bytes(normal)
    assert len(prepare(make_config(root))) == 14


# --- the sample submission -------------------------------------------------------------------------------


def test_prepare_a_sample_that_lists_an_image_not_on_disk(root, refused):
    write_sample(root, ["test_0.png", "test_1.png", "test_2.png", "test_7.png", "test_8.png"])
    message = refused(root)
    assert "2 test images are not on disk: test_7.png, test_8.png" in message
    assert "sample_submission.csv" in message


def test_prepare_a_sample_that_lacks_an_image_on_disk(root, refused):
    write_sample(root, ["test_1.png"])
    assert "2 test images are not listed in it: test_0.png, test_2.png" in refused(root)


def test_prepare_duplicate_ids_in_the_sample(root, refused):
    write_sample(root, ["test_0.png", "test_1.png", "test_2.png", "test_1.png", "test_1.png"])
    assert "lists some ids twice: test_1.png;" in refused(root)


def test_prepare_one_name_in_two_spellings_is_a_duplicate(root, refused):
    write_test_images(root, ["ü.png"])
    write_sample(root, ["ü.png", "u\u0308.png"])
    assert "twice" in refused(root)


@pytest.mark.parametrize(
    "text",
    [
        "id,label\ntest_0.png,0\n",
        "ImageId\ntest_0.png\n",
        "ImageId;answer\ntest_0.png;0\n",
        "answer,ImageId\n0,a\n",
    ],
)
def test_prepare_a_sample_with_other_columns(root, refused, text):
    (root / "test/sample_submission.csv").write_text(text)
    message = refused(root)
    assert "expected ImageId, answer" in message
    assert text.splitlines()[0].split(",")[0] in message


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\xff\xfe", b'ImageId,answer\n"test_0.png,0\n'])
def test_prepare_a_garbled_sample(root, refused, content):
    (root / "test/sample_submission.csv").write_bytes(content)
    assert "sample_submission.csv" in refused(root)


def test_prepare_a_missing_sample(root, refused):
    (root / "test/sample_submission.csv").unlink()
    message = refused(root)
    assert "sample_submission.csv does not exist" in message
    assert "data.sample_submission" in message


def test_prepare_two_files_that_differ_in_spelling_only(root, refused):
    for name in ("u\u0308.png", "ü.png"):
        write_png(root / "train/normal_images" / name, texture(len(name)))
    if len(list((root / "train/normal_images").glob("*.png"))) < 8:
        pytest.skip("this file system knows one spelling only")
    assert "occur twice: normal_images/ü.png" in refused(root)


# --- output that cannot be written -----------------------------------------------------------------------

WRITE_ERRORS = {
    "disk full": ("write_bytes", errno.ENOSPC),
    "disk full at the end": ("replace", errno.ENOSPC),
    "quota": ("write_bytes", errno.EDQUOT),
    "read-only disk": ("write_bytes", errno.EROFS),
    "read-only folder": ("write_bytes", errno.EACCES),
    "a limit on the size of files": ("write_bytes", errno.EFBIG),
    "a failing disk": ("replace", errno.EIO),
    "a network folder that is gone": ("write_bytes", errno.ESTALE),
}


@pytest.mark.parametrize("kind", WRITE_ERRORS)
def test_prepare_output_that_cannot_be_written(root, refused, monkeypatch, kind):
    method, number = WRITE_ERRORS[kind]
    monkeypatch.setattr(Path, method, raising(OSError(number, os.strerror(number))))
    message = refused(root)
    assert os.strerror(number) in message
    assert "--set output=" in message


def test_prepare_an_output_folder_that_cannot_be_made(
    root, config_file, fails_with_one_line, monkeypatch, tmp_path
):
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "output"))
    monkeypatch.setattr(Path, "mkdir", raising(error))
    path = config_file(root)
    assert str(tmp_path / "output") in fails_with_one_line("prepare.py", "--config", path)


def test_prepare_a_file_where_the_output_folder_should_be(root, config_file, fails_with_one_line, tmp_path):
    (tmp_path / "output").touch()
    assert "output" in fails_with_one_line("prepare.py", "--config", config_file(root))


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.bad_mask=drop", "did you mean data.bad_masks?"),
        ("data.source=mvtek", "data.source=mvtek: the sources are aitex, class_folders, defect_normal"),
        ("data.root", "--set data.root: write section.key=value"),
    ],
)
def test_prepare_mistyped_settings(root, refused, override, text):
    assert text in refused(root, override)


def test_prepare_a_config_that_does_not_exist(fails_with_one_line, tmp_path):
    assert "demo.yaml" in fails_with_one_line("prepare.py", "--config", tmp_path / "nothing.yaml")


def test_prepare_download_without_a_competition(root, config_file, fails_with_one_line):
    assert "data.kaggle.competition" in fails_with_one_line(
        "prepare.py", "--config", config_file(root), "--download"
    )
