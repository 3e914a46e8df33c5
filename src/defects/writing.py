"""Whole files or none; the standard library alone, for prediction where little else is installed."""

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of this call alone, for what is to become it; its folder is made.

    What lies under that name in the end is removed. After a kill it stays: `files.locked` removes it later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not made of the file's own name, which may be as long as the file system allows.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        remove(part)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; nothing if there is none."""
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
