"""Paths of files as tables hold them."""

from collections.abc import Sequence
from pathlib import Path

from defects.messages import UNWRITABLE, UserError, shorten_names


def below(path: Path, root: Path) -> str:
    """A path relative to `root` if it lies below it, else as it is; with `/`."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def check_names(paths: Sequence[Path]) -> None:
    """Raises UserError for names that no table can hold."""
    broken = [path for path in paths if UNWRITABLE.search(path.as_posix())]
    if broken:
        shown = shorten_names(path.as_posix() for path in broken)
        raise UserError(f"unreadable letters in the file names {shown}: rename these files")
