"""Reading the files of annotation tools: JSON, and what lies in a folder."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from defects.data.folder_scan import is_junk
from defects.data.images import IMAGE_SUFFIXES, PIXEL_LIMIT
from defects.data.user_tables import without_image_suffix
from defects.files import same_text
from defects.messages import UserError, shorten_names


def find_by_suffix(path: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with one of the suffixes: `path` itself, or those below it, by name."""
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    files = []
    for item in sorted(path.rglob("*")):
        is_hidden = any(is_junk(part) for part in item.relative_to(path).parts)
        if item.suffix.lower() in suffixes and item.is_file() and not is_hidden:
            files.append(item)
    return files


def read_text(path: Path) -> str:
    """A file of text in UTF-8, with composed letters. Raises UserError."""
    try:
        return same_text(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8: save or export it as UTF-8") from None


def load_json(path: Path) -> Any:
    """The values of a JSON file. Raises UserError for one that is broken or ends too early."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a complete JSON file ({reason}): export or copy it again") from None


def as_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width in pixels as a file states them; None where it states none that an image can have."""
    try:
        size = (int(height), int(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and size[0] * size[1] <= int(os.environ[PIXEL_LIMIT]) else None


def category_name(value: Any) -> str:
    """The name of a category as text; "" for none."""
    return "" if value is None else " ".join(same_text(str(value)).split())


# --- which image is meant -----------------------------------------------------------------------------------


def list_image_names(path: Path, file: Path, stated: str) -> tuple[str, ...]:
    """What the image of `file`, which annotates one image, may be called, the surest name first.

    The file's own name counts before the one that is stated in it, "" for none: that one is old where people
    renamed both files, and tells the suffix alone.
    """
    stated = PureWindowsPath(stated).name
    names = [file.stem]
    suffix = Path(stated).suffix
    if suffix.lower() in IMAGE_SUFFIXES:
        names.insert(0, file.stem + suffix)
    if stated:
        names.append(stated)
    return with_folder(path, file, names)


def with_folder(path: Path, file: Path, names: Sequence[str]) -> tuple[str, ...]:
    """`names`, and before them the first one in the same folder as `file`, where that lies below `path`."""
    folder = "." if path == file else file.parent.relative_to(path).as_posix()
    if folder == ".":
        return tuple(dict.fromkeys(names))
    return tuple(dict.fromkeys([f"{folder}/{names[0]}", *names]))


def describe_renamed(stated: dict[Path, str]) -> list[str]:
    """A note on files that state another name of their image than they have themselves."""
    renamed = []
    for file, name in stated.items():
        name = PureWindowsPath(name).name
        is_same = without_image_suffix(name).casefold() == without_image_suffix(file.stem).casefold()
        if name and not is_same:
            renamed.append(f"{file.name} ({name})")
    if not renamed:
        return []
    return [
        f"{len(renamed)} files state another name than their own, which counts first where there is such an "
        f"image: {shorten_names(renamed)}"
    ]
