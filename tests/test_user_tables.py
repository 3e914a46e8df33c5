"""Tables as people save them: read as meant, or refused in one line."""

import os
import sys
from pathlib import Path

import pytest

from defects.data.user_tables import match_ids, read_user_table
from defects.messages import UserError

COLUMNS = ["image_id", "group"]
PLAIN = "image_id,group\na.png,1\nb c.png,2\n"


def _read(path: Path, content: str | bytes, **options) -> list[tuple]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_user_table(path, COLUMNS, **options)
    return list(table[COLUMNS].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        'image_id,group\n"a.png","1"\n"b c.png","2"\n',
        "Image_ID, Group\na.png, 1 \n b c.png ,2\n",
        "ImageId,GROUP\na.png,1\nb c.png,2",
        "group,image_id\n1,a.png\n2,b c.png\n",
        "image_id,group,,\na.png,1,,\nb c.png,2,,\n",
        "image_id,group\na.png,1,\n\nb c.png,2,,\n,\n\n",
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        "image_id,group,remark\na.png,1,x\nb c.png,2,\n",
    ],
)
def test_user_tables_all_ways_to_save_a_table(tmp_path, content):
    assert _read(tmp_path / "t.csv", content) == [("a.png", "1"), ("b c.png", "2")]


def test_user_tables_values_stay_text(tmp_path):
    content = 'image_id,group\n007.png,NA\n1e5,"a,""b"""\n,01\n'
    assert _read(tmp_path / "t.csv", content) == [("007.png", "NA"), ("1e5", 'a,"b"'), ("", "01")]


def test_user_tables_korean_code_page(tmp_path):
    content = "image_id,group\n불량_01.png,라인1\n".encode("cp949")
    assert _read(tmp_path / "t.csv", content) == [("불량_01.png", "라인1")]


def test_user_tables_rows_are_numbered_as_a_spreadsheet_does(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image_id,group\na,1\n\nb,2\n")
    assert (read_user_table(path, COLUMNS).index + 2).tolist() == [2, 4]


def test_user_tables_a_field_of_many_characters(tmp_path):
    runs = "1 2 " * 100_000
    assert _read(tmp_path / "t.csv", f"image_id,group\na.png,{runs}\n") == [("a.png", runs.strip())]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        ("image_id,group\nPrüf.png,1\n".encode("cp1252"), "save it as CSV UTF-8"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a readable CSV"),
        (b'image_id,group\n"a.png,1\n', "not a readable CSV"),
        (b"image_id,group\na,1,x\n", "more than 2 values, row 2"),
        (b"image_id,ImageId,group\na,b,1\n", "several columns image_id"),
    ],
)
def test_user_tables_tables_that_cannot_be_read(tmp_path, content, expected):
    with pytest.raises(UserError) as caught:
        _read(tmp_path / "t.csv", content)
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [PLAIN.replace(",", ";"), PLAIN.upper(), "image_id,group,\na,1,\n"])
def test_user_tables_files_for_others_are_taken_to_the_letter(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_text(content)
    assert list(read_user_table(path, COLUMNS, is_exact=True).columns) != COLUMNS
    path.write_text(PLAIN, encoding="utf-16")
    with pytest.raises(UserError, match="UTF-8"):
        read_user_table(path, COLUMNS, is_exact=True)


# --- ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "image"),
    [
        ("a/1.png", "a/1.png"),
        ("a/1", "a/1.png"),
        ("a/1.jpg", "a/1.png"),
        ("2.png", "b/2.png"),
        ("2", "b/2.png"),
        ("x\\y\\2.png", "b/2.png"),
        ("A/1.PNG", "a/1.png"),
        ("v1.2", "v1.2.png"),
    ],
)
def test_user_tables_ids_mean_images(listed, image):
    assert match_ids([listed], ["a/1.png", "b/2.png", "v1.2.png", "c/3.png", "d/3.png"], "t.csv") == {
        listed: image
    }


def test_user_tables_an_image_listed_by_its_own_id_is_meant_by_no_other():
    assert match_ids(["a.png", "a.jpg", "a"], ["a.png"], "t.csv") == {"a.png": "a.png"}


def test_user_tables_ids_of_no_image_are_left_out():
    assert match_ids(["z", "a.png"], ["a.png", "b.png"], "t.csv") == {"a.png": "a.png"}


@pytest.mark.parametrize(
    ("listed", "known"),
    [(["3"], ["c/3.png", "d/3.png"]), (["a", "a.bmp"], ["a.png"]), (["a"], ["a.png", "a.jpg"])],
)
def test_user_tables_ids_that_are_not_clear_are_refused_naming_both(listed, known):
    with pytest.raises(UserError) as caught:
        match_ids(listed, known, "t.csv")
    assert all(name in str(caught.value) for name in listed + known)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
def test_user_tables_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match="no plain file"):
        read_user_table(tmp_path / "t.csv", COLUMNS)
