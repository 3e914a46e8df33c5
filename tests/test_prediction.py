"""Paths given to predict.py: what globs stand for, where pictures go, and names that are no text."""

import csv
import io
import json
import os
import re
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
from conftest import texture, write_png

from defects.deploy.prediction import (
    Prediction,
    csv_writer,
    find_files,
    json_writer,
    locate,
    name_pictures,
    path_text,
    read_frame,
    without_dots,
)
from defects.messages import UserError

posix = pytest.mark.skipif(os.name == "nt", reason="names are text there, and backslashes separate folders")
META = SimpleNamespace(targets=["defect"])


@pytest.fixture
def images(tmp_path):
    """A folder of images in folders, some of which hold none."""
    for name in ("a/1.png", "a/deep/2.png", "b/1.png", "[set]/3.png"):
        write_png(tmp_path / name, texture(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    return tmp_path


def names_of(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/1.png", ["a/1.png", "b/1.png"]),
        ("?", ["a/1.png", "a/deep/2.png", "b/1.png"]),  # folders alone
        ("[ab]", ["a/1.png", "a/deep/2.png", "b/1.png"]),
        ("a/**", ["a/1.png", "a/deep/2.png"]),
        ("**/*.png", ["[set]/3.png", "a/1.png", "a/deep/2.png", "b/1.png"]),
        ("[set]/3.png", ["[set]/3.png"]),  # a file of that name, no pattern
        ("[set]", ["[set]/3.png"]),
        ("texts/*", ["texts/notes.txt"]),  # a shell would hand it over too: predict says why it is no image
    ],
)
def test_find_files_takes_globs_as_a_shell_does(images, pattern, expected):
    assert names_of(find_files([str(images / pattern)]), images) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("e*", "e* matches nothing but folders without images"),
        ("*.tif", "*.tif matches no file"),
        ("a**b", "a**b matches no file"),
        ("empty", "holds no images"),
        ("texts", "holds no images"),
    ],
)
def test_find_files_refuses_what_holds_no_image(images, pattern, message):
    with pytest.raises(UserError, match=re.escape(message)):
        find_files([str(images / pattern)])


def test_find_files_refuses_an_empty_path():
    with pytest.raises(UserError, match="one of the paths is empty"):
        find_files([""])


def test_find_files_leaves_names_that_cannot_exist_to_predict():
    name = "x" * 5000
    assert find_files([name]) == [Path(name)]


@posix
def test_read_frame_refuses_what_might_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="pipe.png is no plain file"):
        read_frame(tmp_path / "pipe.png", None)


def test_find_files_takes_a_file_once_however_it_is_spelt(images):
    spelt = ["a/1.png", "b/../a/1.png", "a/./1.png", "a"]
    found = find_files([str(images / name) for name in spelt])
    assert names_of(found, images) == ["a/1.png", "a/deep/2.png"]


def test_find_files_tells_apart_what_a_link_and_dots_lead_to(images):
    (images / "link").symlink_to(images / "a" / "deep", target_is_directory=True)
    # The folder above the linked one is a, not the one that the link lies in.
    found = find_files([str(images / "link" / ".." / "1.png"), str(images / "b" / "1.png")])
    assert [path.relative_to(images).as_posix() for path in locate(found)] == ["a/1.png", "b/1.png"]


def test_name_pictures_stays_below_the_folder(images):
    paths = [images / "b" / ".." / "a" / "1.png", images / "b" / "1.png", images / "a" / "deep" / "2.png"]
    names = [name.as_posix() for name in name_pictures(without_dots(paths))]
    assert names == ["a/1.png.png", "b/1.png.png", "a/deep/2.png.png"]


def test_name_pictures_keeps_the_names_of_linked_folders(images, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_png(elsewhere / "4.png", texture(1))
    (images / "link").symlink_to(elsewhere, target_is_directory=True)
    files = find_files([str(images / "link"), str(images / "b")])
    names = [name.as_posix() for name in name_pictures(without_dots(files))]
    assert names == ["link/4.png.png", "b/1.png.png"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["C:\\in\\1.png"], ["1.png.png"]),
        (["C:\\in\\1.png", "D:\\in\\1.png"], ["C/in/1.png.png", "D/in/1.png.png"]),
        (["C:\\1.png", "\\\\host\\share\\1.png"], ["C/1.png.png", "host/share/1.png.png"]),
        (["C:\\in\\1.png", "C:\\in\\1.jpg"], ["1.png.png", "1.jpg.png"]),
    ],
)
def test_name_pictures_makes_folders_of_drives(paths, expected):
    assert [name.as_posix() for name in name_pictures([PureWindowsPath(path) for path in paths])] == expected


TEXTS = ["plain.png", "결함.png", "a b.png", "back\\slash.png"]
NO_TEXTS = ["looks\\xba.png", "both\\xba\udcba.png", "\udcb0.png"]


def read_back(text):
    r"""The bytes of a path as docs/deployment.md describes it: `\xNN` a byte, `\\` a backslash."""

    def byte(match):
        return b"\\" if match[1] == b"\\" else bytes([int(match[1][1:], 16)])

    is_escaped = re.search(r"(?<!\\)(\\\\)*\\x[89a-f][0-9a-f]|\\\\", text)
    content = text.encode()
    return re.sub(rb"\\(\\|x[0-9a-f]{2})", byte, content) if is_escaped else content


@posix
@pytest.mark.parametrize("name", TEXTS + NO_TEXTS)
def test_path_text_can_be_read_back(name):
    assert read_back(path_text(name)) == os.fsencode(name)


@posix
def test_path_text_leaves_text_alone():
    assert [path_text(name) for name in TEXTS] == TEXTS


@pytest.mark.parametrize("error", ["", "/in/\udcba.png is empty"])
def test_writers_write_names_that_are_no_text(error):
    values = {"score": {"defect": 1.0}, "probability": {"defect": 0.7}, "defect_score": {"defect": 61.0}}
    found = Prediction(Path("/in/\udcba.png"), **values, labels=["defect"], error=error)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    csv_writer(stream, META)(found)
    json_writer(stream, META)(found)
    content = stream.buffer.getvalue().decode("utf-8")
    head, row, line = content.splitlines()
    assert next(csv.reader([row]))[0] == json.loads(line)["path"] == str(Path("/in/\\xba.png"))
    assert json.loads(line).get("error", "") == error.replace("\udcba", "\\xba")


def test_find_files_lists_files_without_repetitions_and_in_order(tmp_path):
    paths = [write_png(tmp_path / name, texture(1)) for name in ("b/2.png", "b/1.png", "a.png")]
    (tmp_path / "b" / "notes.txt").write_text("no image")
    found = find_files([str(tmp_path / "a.png"), str(tmp_path / "b"), str(tmp_path / "*.png"), "gone.png"])
    assert [path.name for path in found] == ["a.png", "1.png", "2.png", "gone.png"]
    assert set(paths) <= set(found)
    with pytest.raises(UserError, match="matches no file"):
        find_files([str(tmp_path / "*.jpg")])
