"""`download` with the real kaggle client as a subprocess, against a local stand-in for Kaggle's servers."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from kaggle_server import KaggleServer

from defects.config_schema import KaggleConfig
from defects.messages import UserError
from defects.submission.kaggle_cli import download, run_kaggle

STEEL = KaggleConfig(competition="steel", expected={"train/*.png": 2, "*.csv": 1})


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD = zipped({"train/a.png": b"a" * 5000, "train/b.png": b"b" * 5000, "train.csv": b"id\n"})


@pytest.fixture
def server(kaggle_server: KaggleServer) -> KaggleServer:
    """The stand-in with a good archive."""
    kaggle_server.archive = GOOD
    return kaggle_server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "input" / "steel"


def failure(kaggle: KaggleConfig, root: Path) -> str:
    """The message of a failing download, which must be one line and leave no part of the data."""
    with pytest.raises(UserError) as caught:
        download(kaggle, root)
    assert "\n" not in str(caught.value)
    assert not root.exists()
    assert not list(root.parent.glob(".*"))
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_download_unpacks_and_a_second_call_does_nothing(server, root, capsys):
    root.mkdir(parents=True)  # an empty folder is no obstacle
    download(STEEL, root)
    assert set(contents(root)) == {"train/a.png", "train/b.png", "train.csv"}
    assert [path.name for path in root.parent.iterdir()] == ["steel"]
    assert server.requests[0].body == {"competitionName": "steel"}
    assert "B/s]" in capsys.readouterr().err  # the client's progress bar

    calls = len(server.requests)
    download(STEEL, root)
    assert "complete already" in capsys.readouterr().out
    assert len(server.requests) == calls


def test_download_nested_archives_are_unpacked_beside_or_into_a_folder(server, root):
    server.archive = zipped(
        {
            "train.zip": zipped({"train/a.png": b"a", "train/b.png": b"b"}),
            "train.csv.zip": zipped({"train.csv": b"id\n"}),
            "test_images.zip": zipped({"c.png": b"c"}),
        }
    )
    download(STEEL, root)
    assert set(contents(root)) == {"train/a.png", "train/b.png", "train.csv", "test_images/c.png"}


def test_download_a_broken_connection_is_taken_up_where_it_broke(server, root, capsys):
    mebibyte = 2**20  # the client's unit: what it received of the next one is lost
    server.archive = zipped({"train/a.png": b"a" * 3 * mebibyte, "train/b.png": b"b", "train.csv": b"id\n"})
    server.drops = True
    download(STEEL, root)
    assert contents(root)["train/a.png"] == b"a" * 3 * mebibyte
    assert server.requests[-1].headers["Range"] == f"bytes={mebibyte}-"
    assert "Retrying in" in capsys.readouterr().err


def test_download_a_partial_archive_of_an_earlier_run_is_completed(server, root):
    root.parent.mkdir()
    (root.parent / "steel.zip").write_bytes(GOOD[:100])
    marker = {"validator": '"v1"', "size": len(GOOD)}
    (root.parent / "steel.zip.kaggle-partial").write_text(json.dumps(marker))
    download(STEEL, root)
    assert server.requests[-1].headers["Range"] == "bytes=100-"
    assert [path.name for path in root.parent.iterdir()] == ["steel"]


def test_download_a_complete_archive_needs_no_client(server, root):
    root.parent.mkdir()
    (root.parent / "steel.zip").write_bytes(GOOD)
    download(STEEL, root)
    assert len(contents(root)) == 3
    assert not server.requests


def test_download_a_lost_connection_is_an_error_and_its_rest_is_not_mistaken_for_data(server, root):
    server.drops = server.fails_after_drop = True
    assert "does not match expected size" in failure(STEEL, root)
    # the client left the error page in the file, and appends to it at the next call
    server.fails_after_drop = False
    assert re.search(r"steel\.zip cannot be unpacked \(.+\): delete it and run again", failure(STEEL, root))
    (root.parent / "steel.zip").unlink()
    download(STEEL, root)


def test_download_no_credentials(server, root, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    message = failure(STEEL, root)
    assert message.startswith(
        "kaggle competitions download steel: no valid Kaggle credentials: create a token"
    )
    assert "kaggle.json" in message and "KAGGLE_API_TOKEN" in message
    assert not server.requests


def test_download_token_is_introspected_and_an_expired_one_counts_as_none(server, root, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_test")
    server.replies["IntrospectToken"] = (200, {"active": False})
    assert "no valid Kaggle credentials" in failure(STEEL, root)
    server.replies["IntrospectToken"] = (200, {"active": True, "username": "tester"})
    download(STEEL, root)
    assert server.requests[-2].headers["Authorization"] == "Bearer KGAT_test"


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (401, "Unauthenticated", "no valid Kaggle credentials"),
        (
            403,
            "You must accept this competition's rules before you'll be able to download files.",
            "accept its",
        ),
        (403, "Permission 'competitions.participate' was denied", "accept its rules"),
        (404, "Competition not found", "no such competition: data.kaggle.competition must be"),
        (500, "Something broke", "kaggle competitions download steel: Something broke"),
    ],
)
def test_download_refusals_say_what_to_do(server, root, status, said, advice):
    server.refuse(status, said)
    message = failure(STEEL, root)
    assert advice in message
    assert status == 401 or said in message


def test_download_with_a_client_that_an_upgrade_damaged(root, tmp_path, monkeypatch):
    package = tmp_path / "damaged" / "kaggle"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "__main__.py").write_text("from kagglesdk import nothing_there\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    assert "run pip install --force-reinstall --no-deps kagglesdk" in failure(STEEL, root)


def test_download_unreachable_server(server, root, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "cannot be reached: check the network" in failure(STEEL, root)


def test_download_truncated_archive_with_exit_code_0(server, root):
    server.archive = GOOD[:-40]
    message = failure(STEEL, root)
    assert "steel.zip is not a complete zip although the kaggle client reported no error" in message
    assert "its last line: Downloading steel.zip" in message


@pytest.mark.parametrize("nested", [False, True])
def test_download_archive_that_writes_elsewhere(server, root, tmp_path, nested):
    evil = zipped({"train/a.png": b"a", "../../evil.txt": b"x"})
    server.archive = zipped({"train.zip": evil}) if nested else evil
    assert "unsafe: its member ../../evil.txt lies outside" in failure(STEEL, root)
    assert not list(tmp_path.rglob("evil.txt"))


def test_download_other_counts_name_the_glob(server, root):
    kaggle = KaggleConfig(competition="steel", expected={"*.csv": 1, "train/*.png": 7})
    message = failure(kaggle, root)
    assert "steel.zip: data.kaggle.expected says 7 files for train/*.png, and there are 2" in message
    download(STEEL, root)  # the archive was kept
    assert sum(request.method == "GET" for request in server.requests) == 1


def test_download_other_data_is_not_overwritten(server, root):
    (root / "train").mkdir(parents=True)
    (root / "train" / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"steel is not empty, but .* there are 1: move it away"):
        download(STEEL, root)
    assert contents(root) == {"train/mine.png": b"mine"}
    assert not server.requests


def test_download_unusable_glob(server, root):
    kaggle = KaggleConfig(competition="steel", expected={"/train/*.png": 7})
    assert "data.kaggle.expected: '/train/*.png' cannot be used" in failure(kaggle, root)


def test_download_a_file_kaggle_py_in_the_working_folder_is_not_the_client(server, tmp_path, monkeypatch):
    (tmp_path / "kaggle.py").write_text("print('not the client')")
    monkeypatch.chdir(tmp_path)
    assert "Kaggle CLI" in run_kaggle(["--version"])
