"""The one listing of image files: what is taken, what is not, and what is said about it."""

import os
import socket
import sys
from pathlib import Path

import pytest

from defects.data import folder_scan
from defects.data.folder_scan import list_files_to_score, list_folders, list_images, scan_folder
from defects.deploy.prediction import find_files
from defects.messages import UserError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


# --- what is taken ---------------------------------------------------------------------------------------


def test_list_images_goes_by_path_and_skips_what_is_no_image(tmp_path):
    kept = ["10.PNG", "9.png", "b/1.jpeg", "b/a.c/2.TIF", "c d.bmp", "e.webp", "x.png/lot.1.v2.jpg"]
    skipped = ["._9.png", "b/._1.jpeg", ".ipynb_checkpoints/9-checkpoint.png", "Thumbs.db", "a.txt", "png"]
    _touch(tmp_path, *kept, *skipped, "x.png/y")
    assert list_images(tmp_path) == sorted(tmp_path / name for name in kept)


@pytest.mark.parametrize(
    "junk", ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trash-1000", "__macosx"]
)
def test_junk_folders_are_skipped_at_every_level(tmp_path, junk):
    _touch(tmp_path, "a.png", f"{junk}/a.png", f"b/c/{junk}/d/a.png", f"b/{junk}/a.png/thumb.png")
    assert _names(list_images(tmp_path), tmp_path) == ["a.png"]


def test_a_hidden_folder_above_the_data_set_does_not_hide_it(tmp_path):
    _touch(tmp_path, ".cache/__MACOSX/x.png")
    folder = tmp_path / ".cache" / "__MACOSX"
    assert list_images(folder) == [folder / "x.png"]


def test_folders_among_junk_are_listed_by_name(tmp_path):
    _touch(tmp_path, "good/1.png", "__MACOSX/._1.png", ".ipynb_checkpoints/1.png", "readme.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "good")
    assert _names(list_folders(tmp_path), tmp_path) == ["good", "linked"]
    assert list_folders(tmp_path / "nowhere") == []


def test_a_very_deep_tree(tmp_path):
    deep = "/".join(["d"] * 400)
    _touch(tmp_path, f"{deep}/a.png")
    assert _names(list_images(tmp_path), tmp_path) == [f"{deep}/a.png"]


# --- links -----------------------------------------------------------------------------------------------


def test_folders_behind_links_are_followed(tmp_path):
    _touch(tmp_path, "in/1.png", "disk/2.png", "disk/sub/3.png", "disk/more.txt")
    (tmp_path / "in/more").symlink_to(tmp_path / "disk")
    scan = scan_folder(tmp_path / "in")
    assert _names(scan.images, tmp_path / "in") == ["1.png", "more/2.png", "more/sub/3.png"]
    assert scan.images_behind_links() == 2
    assert scan.linked_folders == [tmp_path / "in/more"]


def test_a_link_to_a_link_and_a_linked_file(tmp_path):
    _touch(tmp_path, "disk/2.png", "pool/blob.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "hop").symlink_to(tmp_path / "disk")
    (tmp_path / "in/more").symlink_to(tmp_path / "hop")
    (tmp_path / "in/1.png").symlink_to(tmp_path / "pool/blob.png")
    assert _names(list_images(tmp_path / "in"), tmp_path / "in") == ["1.png", "more/2.png"]


def test_links_in_a_circle_end(tmp_path, capsys):
    _touch(tmp_path, "in/a/1.png")
    (tmp_path / "in/a/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/self").symlink_to(tmp_path / "in/a")
    assert _names(list_images(tmp_path / "in"), tmp_path / "in") == ["a/1.png"]
    assert "reached twice are taken once" in capsys.readouterr().out


def test_a_link_to_the_folder_above_is_not_followed(tmp_path):
    _touch(tmp_path, "normal/1.png", "abnormal/2.png")
    (tmp_path / "normal/up").symlink_to(tmp_path)
    scan = scan_folder(tmp_path / "normal", without=[tmp_path])
    assert _names(scan.images, tmp_path / "normal") == ["1.png"]
    assert scan.repeated_folders == {tmp_path / "normal/up": tmp_path}


def test_a_folder_reached_twice_is_listed_under_its_own_path(tmp_path):
    _touch(tmp_path, "z/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "b").symlink_to(tmp_path / "z")
    scan = scan_folder(tmp_path)
    assert _names(scan.images, tmp_path) == ["z/1.png"]
    assert set(scan.repeated_folders) == {tmp_path / "a", tmp_path / "b"}


def test_broken_links_are_named_as_such(tmp_path):
    _touch(tmp_path, "1.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "line 2").symlink_to("/mnt/gone")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with pytest.raises(UserError) as caught:
        list_images(tmp_path)
    assert f"{tmp_path / 'broken.png'} is a broken link (to nowhere.png)" in str(caught.value)
    assert f"{tmp_path / 'line 2'} is a broken link (to /mnt/gone)" in str(caught.value)
    assert str(tmp_path / "self.png") in str(caught.value)


# --- what is not taken -----------------------------------------------------------------------------------


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path, capsys):
    _touch(tmp_path, "1.png", "a.heic", "b/b.HEIC", "c.json", "noext", "Thumbs.db", ".DS_Store")
    scan = scan_folder(tmp_path)
    assert scan.not_taken() == "2 .heic, 1 without suffix, 1 .json"
    assert scan.junk == {"hidden": 1, "Thumbs.db": 1}
    list_images(tmp_path)
    list_files_to_score(tmp_path)
    printed = capsys.readouterr()
    assert "2 .heic, 1 without suffix, 1 .json" in printed.out
    assert "2 .heic, 1 without suffix, 1 .json" in printed.err


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
def test_pipes_and_sockets_are_not_opened(tmp_path, monkeypatch):
    _touch(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        (tmp_path / "linked.png").symlink_to(tmp_path / "pipe.png")
        scan = scan_folder(tmp_path)
    assert _names(scan.images, tmp_path) == ["1.png"]
    assert _names(scan.special_files, tmp_path) == ["linked.png", "pipe.png", "socket.png"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    _touch(tmp_path, "in/a.heic", "in/b.heic", "notes.txt", "empty/.gitkeep")
    for name, text in (
        ("in", "holds no images: it holds 2 .heic"),
        ("empty", "holds no images"),
        ("nowhere", "is not a folder"),
        ("notes.txt", "is a file, not a folder"),
    ):
        with pytest.raises(UserError) as caught:
            list_images(tmp_path / name)
        assert f"{tmp_path / name} {text}" in str(caught.value)


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    _touch(tmp_path, "1.png", "locked/2.png")
    listed = os.scandir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(folder_scan.os, "scandir", refusing)
    with pytest.raises(UserError, match=r"locked cannot be read \(Permission denied\)"):
        list_images(tmp_path)
    assert list_files_to_score(tmp_path) == [tmp_path / "1.png", tmp_path / "locked"]


def test_what_cannot_be_read_is_left_to_those_who_report_every_file(tmp_path):
    _touch(tmp_path, "1.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert _names(list_files_to_score(tmp_path), tmp_path) == ["1.png", "gone.png"]


def test_folders_of_others_are_left_out(tmp_path):
    _touch(tmp_path, "1.png", "masks/1.png", "masks/sub/2.png")
    (tmp_path / "linked").symlink_to(tmp_path / "masks")
    scan = scan_folder(tmp_path, [tmp_path / "masks"])
    assert _names(scan.images, tmp_path) == ["1.png"]
    assert len(scan.excluded_folders) == 1


def test_predict_lists_as_prepare_does(tmp_path):
    _touch(tmp_path, "in/1.png", "in/@eaDir/1.png", "in/notes.txt", "disk/2.png")
    (tmp_path / "in/more").symlink_to(tmp_path / "disk")
    (tmp_path / "in/gone.png").symlink_to("nowhere.png")
    found = find_files([str(tmp_path / "in")])
    assert _names(found, tmp_path / "in") == ["1.png", "gone.png", "more/2.png"]
