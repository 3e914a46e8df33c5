import errno
import math
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects import files
from defects.messages import UserError

IDS = ["007", "NA", "null", "None", "nan", "1e5", "", "0x10", "-0", "1,5", 'say "x".png', "true", " padded "]
NAMES = ["a b.png", "Prüfstück 1.png", "缺陷/图.png", "дефект.jpg", "u\u0308.png", "😀.png", "new\nline.png"]


def _break(monkeypatch, method: str, half: bool = False) -> None:
    """Make Path.<method> fail as on a full disk, with half of the content written if asked for."""

    def full(path: Path, argument):
        if half:
            with path.open("wb") as stream:
                stream.write(argument[: len(argument) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, method, full)


def test_write_bytes_makes_the_folder_and_replaces_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "x.bin"
    for content in (b"first, longer", b"second"):
        files.write_bytes(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]


@pytest.mark.parametrize(
    ("method", "half"), [("write_bytes", False), ("write_bytes", True), ("replace", False)]
)
def test_write_bytes_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, method, half):
    path = tmp_path / "x.csv"
    files.write_bytes(path, b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        _break(patch, method, half)
        files.write_bytes(path, b"a new and longer text")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv"]


def test_write_bytes_that_fails_first_leaves_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        _break(patch, "write_bytes", half=True)
        files.write_json(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())


def test_write_json_that_fails_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("column", ["image_id", "ImageId", "path", "mask_path", "kind", "fold", "target"])
def test_read_csv_returns_text_as_it_was(tmp_path, column):
    table = pd.DataFrame({column: IDS + NAMES, "label": 1})
    files.write_csv(tmp_path / "t.csv", table)
    found = files.read_csv(tmp_path / "t.csv", [column, "label"], "x.py")
    assert found[column].tolist() == IDS + NAMES


def test_read_csv_leaves_ids_like_numbers_text(tmp_path):
    files.write_csv(tmp_path / "t.csv", pd.DataFrame({"image_id": ["007", "010", "1e5"]}))
    assert files.read_csv(tmp_path / "t.csv", [], "x.py")["image_id"].tolist() == ["007", "010", "1e5"]


def test_write_csv_is_plain_utf8_with_unix_line_ends(tmp_path):
    files.write_csv(tmp_path / "t.csv", pd.DataFrame({"image_id": ["ü b"], "score": [0.5]}))
    assert (tmp_path / "t.csv").read_bytes() == "image_id,score\nü b,0.5\n".encode()


def test_read_csv_takes_missing_labels(tmp_path):
    table = pd.DataFrame(
        {"image_id": ["a", "b"], "label": pd.array([1, None], "Int64"), "score": [None, 0.5]}
    )
    files.write_csv(tmp_path / "t.csv", table)
    found = files.read_csv(tmp_path / "t.csv", ["label"], "x.py")
    assert found["label"].astype("Int64").tolist() == [1, pd.NA]
    assert found["score"].isna().tolist() == [True, False]


@settings(deadline=None)  # a busy machine is no failure
@given(values=st.lists(st.floats(allow_nan=False), min_size=1))
def test_read_csv_round_trips_floats_exactly(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    files.write_csv(path, pd.DataFrame({"score": values}, dtype=float))
    found = files.read_csv(path, ["score"], "x.py")["score"].astype(float).tolist()
    assert found == values
    assert [math.copysign(1, a) for a in found] == [math.copysign(1, b) for b in values]


@settings(deadline=None)  # a busy machine is no failure
@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), min_size=1))
def test_read_csv_round_trips_any_file_name(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "names.csv"
    files.write_csv(path, pd.DataFrame({"image_id": names, "label": 0}))
    assert files.read_csv(path, ["image_id"], "x.py")["image_id"].tolist() == names


def test_read_csv_of_a_missing_table_names_the_stage(tmp_path):
    with pytest.raises(UserError, match=r"folds\.csv does not exist: run src/split\.py first"):
        files.read_csv(tmp_path / "folds.csv", ["image_id"], "src/split.py")


def test_read_csv_names_all_missing_columns(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,extra\na,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.csv lacks the columns fold, group: .* src/split\.py"):
        files.read_csv(tmp_path / "t.csv", ["image_id", "fold", "group"], "src/split.py")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b'a,b\n"open,1\n',
        b"a,b\n1,2,3\n1,2,3,4\n",
        b"\x89PNG\r\n\x1a\n\xff\xfe",
        b"\xff\xfea,b\n",
    ],
    ids=["empty", "blank", "open quote", "ragged", "image", "utf-16"],
)
def test_read_csv_of_a_garbled_table_names_file_and_stage(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv .*src/split\.py"):
        files.read_csv(tmp_path / "t.csv", ["image_id"], "src/split.py")


def test_read_json_round_trips_and_is_none_for_no_file(tmp_path):
    value = {"ä": [1, 0.1, None, "缺"]}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert files.read_json(tmp_path / "y.json") is None


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xd8"])
def test_read_json_refuses_a_garbled_file(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        files.read_json(tmp_path / "x.json")


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")


def test_same_text_has_one_spelling_of_accents():
    assert files.same_text("u\u0308.png") == files.same_text("ü.png") == "ü.png"


def test_locked_names_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "drive").symlink_to(tmp_path / "unplugged" / "drive")
    with (
        pytest.raises(UserError, match="run cannot be made .*output=FOLDER"),
        files.locked(tmp_path / "drive" / "run", wait=False),
    ):
        pass


def test_locked_removes_old_parts_of_killed_processes_only(tmp_path):
    fresh, old, folder = (tmp_path / f".{name}.part" for name in ("fresh", "old", "folder"))
    (folder / "inside").mkdir(parents=True)
    fresh.write_bytes(b"half")
    old.write_bytes(b"half")
    long_ago = time.time() - 2 * files.ABANDONED_AFTER_SECONDS
    for path in (old, folder):
        os.utime(path, (long_ago, long_ago))
    with files.locked(tmp_path, wait=False):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", fresh.name}


def test_partial_names_differ_and_fit_the_longest_file_name(tmp_path):
    path = tmp_path / ("x" * 251 + ".csv")
    with files.partial(path) as one, files.partial(path) as other:
        assert one != other
    files.write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
