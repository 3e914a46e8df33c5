"""Paths of files whose names may be no text: where they lead, and how they are written down."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

SURROGATE = re.compile(r"[\ud800-\udfff]")  # stands for a byte that is no UTF-8 (PEP 383: U+DC80 to U+DCFF)
LOOKS_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]")


def path_text(path: PurePath | str) -> str:
    r"""The path as UTF-8 can hold it: a byte of a name that is no UTF-8 becomes `\xNN`.

    In such a path a backslash is doubled, so that the bytes can be told from the text. All other paths stay
    as they are.
    """
    text = str(path)
    could_be_mistaken = os.sep == "/" and LOOKS_ESCAPED.search(text)
    if not (SURROGATE.search(text) or could_be_mistaken):
        return text
    return escape_bytes(text.replace("\\", "\\\\"))


def escape_bytes(text: str) -> str:
    r"""Text with `\xNN` for each byte that is no UTF-8."""

    def escaped(match: re.Match) -> str:
        code = ord(match[0])
        is_byte = 0xDC80 <= code <= 0xDCFF
        return f"\\x{code - 0xDC00:02x}" if is_byte else f"\\u{code:04x}"  # the latter on Windows alone

    return SURROGATE.sub(escaped, text)


def locate(paths: Sequence[Path]) -> list[Path]:
    """What identifies each file: absolute, without `..` and without links among the folders.

    A link to a file stays a link.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = Path(os.path.realpath(path.parent))
    return [folders[path.parent] / path.name for path in paths]


def without_dots(paths: Sequence[Path]) -> list[Path]:
    """Absolute paths as they were given, with linked folders; those with a `..` are located.

    Different for different files: what is left of a path without `..` and links is the file's own.
    """
    located = locate(paths)
    return [
        place if ".." in path.parts else path.absolute() for path, place in zip(paths, located, strict=True)
    ]


def name_pictures(places: Sequence[PurePath]) -> list[PurePath]:
    """For each of these absolute paths (see `without_dots`) a relative one of its own, with `.png` added.

    They lie below the deepest folder that holds all files; where there are several drives, a drive is a
    folder.
    """
    parts = [[*_drive_folders(place), *place.parts[1:]] for place in places]
    common = len(os.path.commonprefix([each[:-1] for each in parts]))
    return [PurePath(*each[common:-1], f"{each[-1]}.png") for each in parts]


def _drive_folders(place: PurePath) -> list[str]:
    r"""`C:` is the folder C, `\\server\share` the folders server and share; none but on Windows."""
    return re.findall(r"[^\\/:?]+", place.drive)
