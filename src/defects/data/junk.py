"""Files and folders that operating systems, archives and storage boxes leave between a user's own."""

import os
from pathlib import Path

from defects.messages import UserError

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


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name, hidden ones included, is none of the user's images."""
    return name.startswith(".") or name.casefold() in JUNK_NAMES


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
