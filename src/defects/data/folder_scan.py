"""The one listing of image files: what lies in a folder, and what of it is taken.

All commands that read a folder of images share it. Neither torch nor pandas is imported.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from defects.data.images import IMAGE_SUFFIXES
from defects.messages import UserError, printable, shorten_names

MOST_SUFFIXES = 6  # in a line
CATEGORY_FOLDERS = ("train", "Train", "Data/Images")  # one of which a category of a data set has
# What operating systems, archives and storage boxes leave between a user's own files; hidden ones go as well.
JUNK_NAMES = {
    "__macosx",  # archives packed on a Mac
    "@eadir",  # thumbnails of Synology boxes
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "@recently-snapshot",
    "~snapshot",  # NetApp
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "lost.dir",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}
FolderKey = tuple[int, int] | str


@dataclass
class FolderScan:
    """What lies under `folder`. All paths start with `folder` as it was named, and are sorted."""

    folder: Path | str  # text if it is a URL
    images: list[Path] = field(default_factory=list)  # files with a suffix of images
    other_files: Counter[str] = field(default_factory=Counter)  # by suffix, "" for files without one
    junk: Counter[str] = field(default_factory=Counter)  # by name; all hidden ones are counted as "hidden"
    special_files: list[Path] = field(default_factory=list)  # pipes, sockets and devices
    broken_links: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)  # folders, and why they cannot be read
    linked_folders: list[Path] = field(default_factory=list)  # links to folders that were followed
    repeated_folders: dict[Path, Path] = field(default_factory=dict)  # not followed: taken under this path
    excluded_folders: dict[FolderKey, Path] = field(default_factory=dict)  # of `without`, where they lie here
    folders: dict[FolderKey, Path] = field(default_factory=dict)  # all that were listed, by identity

    def images_behind_links(self) -> int:
        """How many images lie in a folder that a link leads to."""
        linked = set(self.linked_folders)
        return sum(not linked.isdisjoint(path.parents) for path in self.images) if linked else 0

    def not_taken(self) -> str:
        """`3 .txt, 1 .heic, 2 pipes or devices`: files that are no images; "" if there are none."""
        parts = count_by_suffix(self.other_files)
        if self.special_files:
            parts.append(f"{len(self.special_files)} pipes or devices")
        return shorten_names(parts, most=MOST_SUFFIXES)

    def problems(self) -> list[str]:
        """One text for each place where images may be missing: broken links, folders without permission."""
        problems = [broken_link_text(path) for path in self.broken_links]
        for path, reason in self.unreadable.items():
            problems.append(f"{path} cannot be read ({reason})")
        return problems


def count_by_suffix(files: Counter[str]) -> list[str]:
    """`12 .txt` for each suffix, the most frequent first."""
    ordered = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count} {printable(suffix) or 'without suffix'}" for suffix, count in ordered]


def scan_folder(folder: Path, without: Iterable[Path] = ()) -> FolderScan:
    """List `folder` and all below it, folders behind links included, less the folders `without`.

    A folder that several links lead to is listed once, under its own path where it has one below `folder`. A
    link to a folder that `folder` itself lies in is not followed. Raises UserError if `folder` is not one.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "is not a folder"
        raise UserError(f"{folder} {what}: name a folder of images")
    scan = FolderScan(folder)
    real_folder = Path(os.path.realpath(folder))
    above = {folder_key(path): path for path in real_folder.parents}
    excluded = {folder_key(path) for path in without}
    waiting = [folder]
    links = []
    while waiting or links:
        # Links come last, so that a folder which lies here is listed under its own path.
        is_link = not waiting
        path = links.pop(0) if is_link else waiting.pop()
        try:
            key = folder_key(path)
        except OSError as error:
            scan.unreadable[path] = error.strerror or str(error)
            continue
        if key in scan.folders or key in above:
            scan.repeated_folders[path] = scan.folders.get(key) or above[key]
            continue
        if key in excluded:
            scan.excluded_folders[key] = path
            continue
        scan.folders[key] = path
        if is_link:
            scan.linked_folders.append(path)
        folders, linked = _list_one(scan, path)
        waiting += folders
        links = sorted(links + linked)
    scan.images.sort()
    scan.broken_links.sort()
    scan.special_files.sort()
    return scan


def list_folders(folder: Path) -> list[Path]:
    """The sub-folders of `folder` by path, links to folders included; none if there is no such folder.

    Raises UserError if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_junk(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    return [path for path in sorted(folder / name for name in names) if path.is_dir()]


def list_categories(root: Path) -> list[str]:
    """Names of the sub-folders of `root` that hold training images."""
    names = []
    for folder in list_folders(root):
        if any((folder / inner).is_dir() for inner in CATEGORY_FOLDERS):
            names.append(folder.name)
    return names


def list_images(folder: Path) -> list[Path]:
    """All images under `folder`, by path; what is no image is counted on the console.

    Raises UserError if there is none, and for broken links and folders that cannot be read.
    """
    scan = scan_folder(folder)
    check_complete([scan])
    check_not_empty(scan)
    print_not_taken(scan, sys.stdout)
    return scan.images


def list_files_to_score(folder: Path) -> list[Path]:
    """As list_images, for a caller that reports every file which cannot be read and goes on.

    Broken links and unreadable folders are among the files. Counts go to the error stream: the other one may
    hold a table. Raises UserError if there is nothing at all.
    """
    scan = scan_folder(folder)
    files = sorted([*scan.images, *scan.broken_links, *scan.unreadable])
    if not files:
        check_not_empty(scan)
    print_not_taken(scan, sys.stderr)
    return files


def check_complete(scans: Iterable[FolderScan]) -> None:
    """Raises UserError for links and folders behind which images may be missing."""
    problems = [problem for scan in scans for problem in scan.problems()]
    if problems:
        raise UserError(f"{shorten_names(problems, '; ')}: mend or remove what is named")


def check_not_empty(scan: FolderScan) -> None:
    """Raises UserError if there is no image, saying what there is instead."""
    if scan.images:
        return
    not_taken = scan.not_taken()
    instead = f"it holds {not_taken}; " if not_taken else ""
    raise UserError(
        f"{scan.folder} holds no images: {instead}images are .jpg, .png, .tif and what OpenCV reads"
    )


def print_not_taken(scan: FolderScan, stream: TextIO) -> None:
    """One line where files were not taken, and one where a folder was reached twice."""
    not_taken = scan.not_taken()
    if not_taken:
        print(f"note: {printable(str(scan.folder))}: not taken, being no images: {not_taken}", file=stream)
    if scan.repeated_folders:
        print(f"note: {repeated_text(scan.repeated_folders)}", file=stream)


def repeated_text(repeated: dict[Path, Path]) -> str:
    """Which folders were reached a second time, and were listed once."""
    links = [f"{link} (is {first})" for link, first in repeated.items()]
    return f"folders reached twice are taken once: {shorten_names(links)}"


def broken_link_text(path: Path) -> str:
    return f"{path} is a broken link (to {path.readlink()})"


def count_image_files(folder: Path) -> int:
    """Files with a suffix of images that lie directly in `folder`."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_junk(entry.name) and _is_file(entry)]
    return sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name, hidden ones included, is none of the user's images."""
    return name.startswith(".") or name.casefold() in JUNK_NAMES


def folder_key(path: Path) -> FolderKey:
    """What is the same for all paths of one folder. Raises OSError."""
    facts = path.stat()
    # Some network drives number no files.
    return (facts.st_dev, facts.st_ino) if facts.st_ino else os.path.realpath(path)


def _list_one(scan: FolderScan, folder: Path) -> tuple[list[Path], list[Path]]:
    """Note the files of one folder; returns its sub-folders, and its links to folders."""
    folders = []
    links = []
    try:
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        scan.unreadable[folder] = error.strerror or str(error)
        return folders, links
    for entry in entries:
        path = folder / entry.name
        if is_junk(entry.name):
            scan.junk["hidden" if entry.name.startswith(".") else entry.name] += 1
        elif _is_folder(entry):
            (links if entry.is_symlink() else folders).append(path)
        elif _is_file(entry):
            suffix = path.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                scan.images.append(path)
            else:
                scan.other_files[suffix] += 1
        elif entry.is_symlink() and _leads_nowhere(path):
            scan.broken_links.append(path)
        else:
            scan.special_files.append(path)
    return folders, links


def _leads_nowhere(link: Path) -> bool:
    try:
        link.stat()
    except OSError:
        return True
    return False


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to a folder without permission
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
