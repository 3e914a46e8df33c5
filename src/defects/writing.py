"""Whole files or none; without pandas, for prediction where it is not installed."""

import glob
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is to become it, gone in the end; its folder is made.

    What processes of this machine left under such names when they were killed goes first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(stem)}*.part"):
        process = left.name.removeprefix(stem).removesuffix(".part")
        if process == str(os.getpid()) or (process.isdigit() and not psutil.pid_exists(int(process))):
            _remove(left)
    mine = path.with_name(f"{stem}{os.getpid()}.part")
    try:
        yield mine
    finally:
        _remove(mine)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: a temporary file in the same folder, then `os.replace`."""
    with partial(path) as written:
        written.write_bytes(content)
        written.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
