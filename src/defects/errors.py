"""The one exception that means "the input or the set-up is wrong, not the program"."""

from collections.abc import Iterable

SHOWN_NAMES = 3  # of a list of files or images; the others are counted


class UserError(Exception):
    """Its message is one line: which file or setting, what is wrong with it, what to do."""


def shorten_names(names: Iterable[object], separator: str = ", ", most: int = SHOWN_NAMES) -> str:
    """`a, b, c and 12 more`: a list for one line of text, however long it is."""
    names = [str(name) for name in names]
    shown = separator.join(names[:most])
    left_out = len(names) - most
    return f"{shown} and {left_out} more" if left_out > 0 else shown
