"""Files that are local or lie behind a URL: s3://, gs://, memory:// and all that fsspec knows.

Locations are text, since pathlib would shorten the `//` of a URL. fsspec is imported only for URLs.
"""

import errno
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from defects.data.folder_scan import FolderScan, check_not_empty, is_junk, print_not_taken
from defects.data.images import IMAGE_SUFFIXES
from defects.engines import INSTALL_CLUSTER
from defects.files import locked, partial, write_bytes
from defects.messages import UserError
from defects.versions import CLUSTER_REQUIREMENTS, check_versions

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a drive of Windows has one letter
# A network drive that is not there any more; a single file has other errors.
LOST_DRIVE = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENODEV", "ENXIO")
    if hasattr(errno, name)
}
LEASE = "lease.json"
BEAT_SECONDS = 5.0  # after which a lease is renewed
LEASE_SECONDS = 20.0  # without a renewal: its command was killed


class StoreError(Exception):
    """A store that denies access, or does not answer: no fault of one file. Its message is one line."""


def is_url(location: str) -> bool:
    return URL.match(location) is not None


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def split(location: str) -> tuple[str, str]:
    """Folder and name."""
    if not is_url(location):
        return str(Path(location).parent), Path(location).name
    folder, _, name = location.rstrip("/").rpartition("/")
    return folder, name


# --- files -------------------------------------------------------------------------------------------------


def read_bytes(location: str) -> bytes:
    """Raises FileNotFoundError or StoreError."""
    with _store_errors(location):
        if not is_url(location):
            return Path(location).read_bytes()
        files, path = open_store(location)
        return files.cat_file(path)


def write_whole(location: str, content: bytes) -> None:
    """Written whole or not at all, where the store can do that (object stores can). Raises StoreError."""
    with _store_errors(location, is_written=True):
        if not is_url(location):
            write_bytes(Path(location), content)
            return
        files, path = open_store(location)
        _make_folder(files, path)
        files.pipe_file(path, content)


@contextmanager
def written_from_file(location: str, scratch: Path) -> Iterator[Path]:
    """A local path to be written, whose file then becomes `location` as a whole; `scratch` is for URLs."""
    with _store_errors(location, is_written=True):
        if not is_url(location):
            with partial(Path(location)) as part:
                yield part
                part.replace(location)
            return
        files, path = open_store(location)
        local = scratch / "joined"
        yield local
        _make_folder(files, path)
        files.put_file(str(local), path)


def list_names(folder: str) -> list[str]:
    """Of the files in a folder; none where there is no such folder. Raises StoreError."""
    with suppress(FileNotFoundError), _store_errors(folder):
        if not is_url(folder):
            return [path.name for path in Path(folder).iterdir()]
        files, path = open_store(folder)
        files.invalidate_cache()  # another command may have written since
        return [PurePosixPath(entry).name for entry in files.find(path, maxdepth=1)]
    return []


def remove_files(folder: str, names: list[str]) -> None:
    """Of those in a folder; some may be missing. Raises StoreError."""
    with _store_errors(folder):
        if not is_url(folder):
            for name in names:
                (Path(folder) / name).unlink(missing_ok=True)
            return
        files, path = open_store(folder)
        for name in names:
            with suppress(FileNotFoundError):
                files.rm_file(f"{path}/{name}")


def _remove_empty_folder(folder: str) -> None:
    """Nothing happens where it is not empty."""
    with suppress(OSError, StoreError), _store_errors(folder):
        if not is_url(folder):
            (Path(folder) / ".lock").unlink(missing_ok=True)
            Path(folder).rmdir()
            return
        files, path = open_store(folder)
        if path.startswith("/") and not files.find(path):
            files.rmdir(path)


def open_store(url: str) -> "tuple[AbstractFileSystem, str]":
    """What fsspec takes for a URL, and the path in it. Raises UserError where a package is missing."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{url} needs the package fsspec: {INSTALL_CLUSTER}") from None
    _check_fsspec()
    if "::" in url:
        raise UserError(f"{url}: chained URLs are not supported: unpack what is within the other")
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} needs another package ({error}); for s3: {INSTALL_CLUSTER}") from None
    except ValueError as error:
        raise UserError(f"{url} is no URL that fsspec knows ({error}): correct it") from None


@cache
def _check_fsspec() -> None:
    check_versions(["fsspec", "s3fs"], CLUSTER_REQUIREMENTS)


def _make_folder(files: "AbstractFileSystem", path: str) -> None:
    """Where stores have folders, paths begin with a slash; elsewhere this might make a bucket."""
    if path.startswith("/"):
        files.makedirs(path.rpartition("/")[0], exist_ok=True)


@contextmanager
def _store_errors(location: str, is_written: bool = False) -> Iterator[None]:
    """A file that is to be read may be missing; one that is written then lacks its bucket or folder."""
    try:
        yield
    except (UserError, StoreError):
        raise
    except FileNotFoundError as error:
        if not is_written:
            raise
        raise StoreError(f"{location}: {error.strerror or error}") from None
    except PermissionError:
        raise StoreError(f"{location}: access is denied") from None
    except Exception as error:
        if not is_url(location) and not isinstance(error, OSError):
            raise
        # The library of every store has errors of its own kinds.
        reason = " ".join(str(error).split())[:200] or "no answer"
        raise StoreError(f"{location}: {getattr(error, 'strerror', None) or reason}") from None


# --- images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredImage:
    """An image to be read as a Path is, but a store that is lost is a StoreError."""

    location: str

    def __str__(self) -> str:
        return self.location

    def read_bytes(self) -> bytes:
        if is_url(self.location):
            return self._read_url()
        path = Path(self.location)
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in LOST_DRIVE and os.path.isdir(path.parent):  # noqa: PTH112 (never raises)
                raise
            raise StoreError(
                f"{path.parent} cannot be read on {socket.gethostname()} ({error.strerror}): all machines "
                "need the folders of the images; mount them, or name URLs"
            ) from None

    def _read_url(self) -> bytes:
        try:
            return read_bytes(self.location)
        except FileNotFoundError:
            folder = split(self.location)[0]
            with _store_errors(folder):
                files, path = open_store(folder)
                files.invalidate_cache()
                is_there = files.exists(path)
            if not is_there:
                raise StoreError(f"{folder} is not there") from None
            raise


def find_images(url: str) -> list[str]:
    """Images of a folder behind a URL, or what a glob matches, sorted; or the URL itself if it is a file.

    Raises UserError for a folder or a glob without images, StoreError where the store cannot be read.
    """
    with _store_errors(url):
        files, path = open_store(url)
        if files.isdir(path):
            return _list_images(files, path, url.rstrip("/"))
        if not set("*?[") & set(path) or files.exists(path):
            return [url]
        images = []
        for match in sorted(files.glob(path)):
            if files.isdir(match):
                with suppress(UserError):  # a folder without images; others may have some
                    images += _list_images(files, match, files.unstrip_protocol(match))
            else:
                images.append(files.unstrip_protocol(match))
        if not images:
            raise UserError(f"{url} matches no image: correct it, or name a folder of images")
        return images


def _list_images(files: "AbstractFileSystem", folder: str, url: str) -> list[str]:
    """`folder`: what the store names `url`."""
    images = []
    scan = FolderScan(url)
    start = len(folder.rstrip("/")) + 1
    for path in sorted(files.find(folder)):
        name = PurePosixPath(path[start:])
        if any(is_junk(part) for part in name.parts):
            continue
        if name.suffix.lower() in IMAGE_SUFFIXES:
            images.append(f"{url}/{name}")
        else:
            scan.other_files[name.suffix.lower()] += 1
    if not images:
        check_not_empty(scan)
    print_not_taken(scan, sys.stderr)
    return images


# --- one command at a time ---------------------------------------------------------------------------------


@contextmanager
def owned(folder: str) -> Iterator[None]:
    """One command at a time in `folder`, which is removed if it is empty in the end.

    Raises UserError if another command is at work there.
    """
    if not is_url(folder) and find_spec("filelock") is None:
        raise UserError("--jobs and --ray need the package filelock: pip install filelock")
    if not is_url(folder):
        with _store_errors(folder, is_written=True):
            Path(folder).mkdir(parents=True, exist_ok=True)
    is_owned = False
    try:
        with _leased(folder) if is_url(folder) else locked(Path(folder), wait=False):
            is_owned = True
            yield
    finally:
        if is_owned:
            _remove_empty_folder(folder)


@contextmanager
def _leased(folder: str) -> Iterator[None]:
    """Object stores have no locks: a small file is renewed as long as the command lives.

    Two that take over an abandoned lease at once both go on; the results of both are the same bytes.
    """
    location = join(folder, LEASE)
    lease = {"command": secrets.token_hex(8), "host": socket.gethostname(), "renewals": 0}
    _take_lease(folder, location, lease)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(location, lease, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(StoreError):
            remove_files(folder, [LEASE])


def _take_lease(folder: str, location: str, lease: dict) -> None:
    if _create(location, lease):
        return
    first = _read_lease(location)
    print(
        f"note: {location} is of a command that was killed or still runs: waiting {LEASE_SECONDS:.0f} s",
        file=sys.stderr,
    )
    waited = 0.0
    while waited < LEASE_SECONDS:
        threading.Event().wait(BEAT_SECONDS / 2)
        waited += BEAT_SECONDS / 2
        now = _read_lease(location)
        if now is None:
            break
        if now != first:
            raise UserError(f"{folder} is being written by another command: wait for it, or stop it")
    write_whole(location, json.dumps(lease).encode())


def _create(location: str, lease: dict) -> bool:
    """Write the lease unless there is one; whether that was so."""
    content = json.dumps(lease).encode()
    with _store_errors(location, is_written=True):
        files, path = open_store(location)
        _make_folder(files, path)
        try:
            files.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True


def _read_lease(location: str) -> bytes | None:
    try:
        return read_bytes(location)
    except FileNotFoundError:
        return None


def _renew(location: str, lease: dict, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        lease["renewals"] += 1
        with suppress(StoreError):  # what writes the results says what is wrong
            write_whole(location, json.dumps(lease).encode())
