"""The one exception that means "the input or the set-up is wrong, not the program"."""

import re
from collections.abc import Iterable

# Surrogates stand for bytes that are no UTF-8: archives packed on old Windows systems unpack to such names.
# Control characters and line separators would break tables and messages.
UNWRITABLE = re.compile(r"[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029]")
SHOWN_NAMES = 3  # of a list of files or images; the remaining ones are counted


class UserError(Exception):
    """Its message is one line: which file or setting, what is wrong with it, what to do."""


def shorten_names(names: Iterable[object], separator: str = ", ", most: int = SHOWN_NAMES) -> str:
    """`a, b, c and 12 more`: a list for one line of text, however long it is."""
    names = [printable(str(name)) for name in names]
    text = separator.join(names[:most])
    remaining = len(names) - most
    return f"{text} and {remaining} more" if remaining > 0 else text


def printable(text: str) -> str:
    """The text in one line that any stream takes: what is UNWRITABLE is escaped."""
    return UNWRITABLE.sub(lambda match: ascii(match[0])[1:-1], text)
