"""Files: written whole or not at all, and the tables, JSON and archives that the stages hand on.

`src/predict.py` runs where neither pandas nor filelock is installed: both are imported where they are used.
"""

import hashlib
import io
import json
import secrets
import shutil
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defects.messages import UserError

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = dict.fromkeys(
    [
        "image_id",
        "ImageId",
        "ClassId",
        "ImageId_ClassId",
        "EncodedPixels",
        "path",
        "split",
        "mask_path",
        "kind",
        "sha256",
        "target",
        "flip",
        "fold",
        "group",
    ],
    "str",
)
NUMBER_COLUMNS = {"label", "width", "height", "angle", "score", "probability", "agreement"}
ABANDONED_AFTER_SECONDS = 24 * 60 * 60  # age of an unfinished file that no process is writing any more


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A new hidden path in the folder of `path`, to be written and then renamed to `path`; makes the folder.

    What is still under that name in the end is removed. After a kill it stays: `locked` removes it later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the file's name, which may be as long as the file system allows.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file atomically: a temporary file in the same folder, then a rename."""
    with partial(path) as part:
        part.write_bytes(content)
        part.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Comma separated, one header line, `\\n` line ends on every platform, UTF-8."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    write_bytes(path, buffer.getvalue().encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


@contextmanager
def array_archive(path: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
    """An .npz that grows array by array: `add(name, array)`; read one with `numpy.load(path)[name]`.

    Written whole or not at all, and no file if nothing is added; equal arrays make equal bytes.
    """
    with _archive(path) as add_file:

        def add(name: str, array: np.ndarray) -> None:
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            add_file(f"{name}.npy", buffer.getvalue())

        yield add


def join_archives(path: Path, parts: Iterable[Path]) -> None:
    """Join the archives `parts` into one, with the bytes that it would have if it had never been divided.

    Raises UserError for a part that is damaged.
    """
    with _archive(path) as add_file:
        for part in parts:
            try:
                with zipfile.ZipFile(part) as archive:
                    for name in archive.namelist():
                        add_file(name, archive.read(name))
            except (zipfile.BadZipFile, zlib.error, EOFError):
                raise UserError(f"{part} is damaged: delete {part.parent} and run this again") from None


@contextmanager
def _archive(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    with partial(path) as part:
        with zipfile.ZipFile(part, "w") as archive:

            def add_file(name: str, content: bytes) -> None:
                entry = zipfile.ZipInfo(name)  # dated 1980, not today
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)

            yield add_file
            has_files = bool(archive.namelist())
        if has_files:
            part.replace(path)


def read_csv(path: Path, columns: Iterable[str], made_by: str) -> "pd.DataFrame":
    """Read one of the contract's tables; ids stay text (`007`, `NA`), floats round-trip exactly.

    Raises UserError naming the file when it is missing, unreadable or lacks a column.
    """
    import pandas as pd

    # Before version 3 the default may miss the last bit; from then on it is exact, and naming it warns.
    exact = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}
    try:
        table = pd.read_csv(
            path,
            dtype=TEXT_COLUMNS,
            keep_default_na=False,
            na_values={"label": [""], "score": [""], "probability": [""]},
            **exact,
        )
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run {made_by} first") from None
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable CSV file ({reason}): rebuild it with {made_by}") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: rebuild it with {made_by}")
    for name in NUMBER_COLUMNS & set(table.columns):
        if len(table) and not pd.api.types.is_numeric_dtype(table[name]):
            raise UserError(f"{path}: column {name} holds what is no number: rebuild it with {made_by}")
    if "label" in table.columns and not table["label"].dropna().isin([0, 1]).all():
        raise UserError(f"{path}: a label is neither 0 nor 1: rebuild it with {made_by}")
    return table


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's values by name, or None when there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run the stage again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: delete it and run the stage again")
    return value


def same_text(text: str) -> str:
    """One spelling for accented names: macOS stores `é` decomposed, submission files composed."""
    return unicodedata.normalize("NFC", text)


@contextmanager
def locked(folder: Path, wait: bool) -> Iterator[None]:
    """One process at a time in `folder`; the system releases the lock of a killed one.

    Raises UserError at once if another holds it and `wait` is false, and if the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}): choose another with --set output=FOLDER"
        ) from None
    try:
        with FileLock(folder / ".lock", timeout=-1 if wait else 0):
            remove_old_parts(folder)
            yield
    except Timeout:
        raise UserError(f"{folder} is being written by another process: wait for it, or stop it") from None


def remove_old_parts(folder: Path) -> None:
    """Remove unfinished files (`partial`) of killed processes.

    By age: other processes may be writing into the folder without its lock, and a file that is being
    written is touched all the time.
    """
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                remove(part)
