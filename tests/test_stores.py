"""Locations behind URLs: images in folders, whole files, and one command at a time."""

import json
import sys
from pathlib import Path

import fsspec
import pytest
from conftest import raising

from defects.deploy import stores
from defects.deploy.stores import StoredImage, StoreError
from defects.messages import UserError


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def put(files, *paths):
    for path in paths:
        files.pipe_file(path, path.encode())


@pytest.mark.parametrize(
    ("location", "is_url"),
    [("s3://b/x", True), ("memory://x", True), ("C://x", False), ("C:\\x", False), ("a/b://c", False)],
)
def test_is_url_knows_drives_and_folders(location, is_url):
    assert stores.is_url(location) == is_url


def test_find_images_lists_a_folder_and_says_what_it_leaves_out(memory, capsys):
    put(memory, "/new/b.png", "/new/a/1.JPG", "/new/.hidden/2.png", "/new/notes.txt", "/newer/3.png")
    assert stores.find_images("memory://new/") == ["memory://new/a/1.JPG", "memory://new/b.png"]
    assert "memory://new: not taken, being no images: 1 .txt" in capsys.readouterr().err


def test_find_images_takes_globs_and_single_files(memory):
    put(memory, "/new/b.png", "/new/a/1.png", "/new/[1].png")
    urls = stores.find_images("memory://new/*")
    assert [url.rpartition("new/")[2] for url in urls] == ["[1].png", "a/1.png", "b.png"]
    assert stores.find_images("memory://new/[1].png") == ["memory://new/[1].png"]
    assert stores.find_images("memory://new/none.png") == ["memory://new/none.png"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://new/*.tif", "matches no image"),
        ("memory://texts", "memory://texts holds no images: it holds 1 .txt"),
        ("nothing://new", "is no URL that fsspec knows"),
        ("zip://a.png::memory://new.zip", "chained URLs"),
    ],
)
def test_find_images_refuses_what_holds_none(memory, url, words):
    put(memory, "/new/b.png", "/texts/a.txt")
    with pytest.raises(UserError, match=words):
        stores.find_images(url)


def test_open_store_names_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match="requirements-cluster.txt"):
        stores.open_store("s3://bucket/x")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("403"), "memory://new/a.png: access is denied"),
        (ConnectionError("Could not connect\nto the endpoint"), "a.png: Could not connect to the endpoint"),
        (RuntimeError(), "a.png: no answer"),
    ],
)
def test_stored_image_tells_a_lost_store_from_a_missing_file(memory, monkeypatch, error, words):
    put(memory, "/new/a.png")
    with pytest.raises(FileNotFoundError):
        StoredImage("memory://new/b.png").read_bytes()
    with pytest.raises(StoreError, match="memory://old is not there"):
        StoredImage("memory://old/b.png").read_bytes()
    monkeypatch.setattr(type(memory), "cat_file", raising(error))
    with pytest.raises(StoreError, match=words):
        StoredImage("memory://new/a.png").read_bytes()


def test_stored_image_tells_a_lost_drive_from_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        StoredImage(str(tmp_path / "a.png")).read_bytes()
    with pytest.raises(StoreError, match="gone cannot be read on .* all machines need"):
        StoredImage(str(tmp_path / "gone" / "a.png")).read_bytes()


@pytest.mark.parametrize("folder", ["memory://out/deep", "file://{}/deep", "{}/deep"])
def test_write_whole_makes_folders_and_list_names_sees_it(memory, tmp_path, folder):
    folder = folder.format(tmp_path.as_posix())
    assert stores.list_names(folder) == []
    stores.write_whole(stores.join(folder, "a"), b"1")
    with stores.written_from_file(stores.join(folder, "b"), tmp_path) as path:
        path.write_bytes(b"2")
    assert sorted(stores.list_names(folder)) == ["a", "b"]
    assert stores.read_bytes(stores.join(folder, "b")) == b"2"
    stores.remove_files(folder, ["a", "b", "none"])
    assert stores.list_names(folder) == []


@pytest.mark.parametrize("location", ["memory://out/a", "{}/a"])
def test_written_from_file_leaves_nothing_after_an_error(memory, tmp_path, location):
    location = location.format(tmp_path / "out")
    with pytest.raises(UserError), stores.written_from_file(location, tmp_path) as path:
        path.write_bytes(b"half")
        raise UserError("stopped")
    assert stores.list_names(stores.split(location)[0]) == []


def test_write_whole_names_a_missing_bucket(memory, monkeypatch):
    monkeypatch.setattr(type(memory), "pipe_file", raising(FileNotFoundError("no such bucket")))
    with pytest.raises(StoreError, match="memory://new/a: no such bucket"):
        stores.write_whole("memory://new/a", b"")
    with pytest.raises(StoreError, match="lease.json: no such bucket"), stores.owned("memory://new"):
        pass


@pytest.fixture
def quick_lease(monkeypatch):
    monkeypatch.setattr(stores, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(stores, "LEASE_SECONDS", 0.5)


@pytest.mark.parametrize("folder", ["memory://out", "{}"])
def test_owned_refuses_a_second_command(memory, tmp_path, quick_lease, folder):
    folder = folder.format(tmp_path / "out")
    with (
        stores.owned(folder),
        pytest.raises(UserError, match="is being written by another"),
        stores.owned(folder),
    ):
        pass
    with stores.owned(folder):  # free again
        pass
    assert not stores.list_names(folder) and (stores.is_url(folder) or not Path(folder).exists())


def test_owned_takes_over_from_a_command_that_was_killed(memory, monkeypatch):
    monkeypatch.setattr(stores, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(stores, "LEASE_SECONDS", 0.05)
    memory.pipe_file("/out/lease.json", b'{"command": "killed"}')
    with stores.owned("memory://out"):
        assert json.loads(memory.cat_file("/out/lease.json"))["command"] != "killed"
    assert not memory.exists("/out/lease.json")
