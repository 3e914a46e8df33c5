"""Tables that the user supplies: annotations, answers, samples, groups; saved by whatever program."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from defects.data.images import IMAGE_SUFFIXES
from defects.files import same_text
from defects.messages import UserError, shorten_names

DELIMITERS = ",;\t"
LONGEST_FIELD = 2**31 - 1  # characters; runs of a large mask are longer than the csv module's default
HANGUL = re.compile(r"^[\x00-\x7f\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3\uff01-\uff5e]*$")


def read_user_table(path: Path, known_columns: Iterable[str], is_exact: bool = False) -> pd.DataFrame:
    """All values as text without blanks around them; index i is row i + 2 of a spreadsheet.

    Comma, semicolon or tab; UTF-8, UTF-16 or Korean CP949; columns that differ from `known_columns` in case,
    blanks or underscores only get the known name; empty rows and columns are left out. With `is_exact` only
    comma and UTF-8, and names and values as they are: a file that others will read as well. Raises UserError.
    """
    rows = _read_rows(path, _read_text(path, is_exact), is_exact)
    if not rows:
        raise UserError(f"{path} is not a readable CSV file: it is empty")
    number, header = rows[0]
    values = [(at, row) for at, row in rows[1:] if any(row)]
    width = len(header) if is_exact else _width(header, [row for _, row in values])
    for at, row in values:
        if any(row[width:]) or (is_exact and len(row) > width):
            raise UserError(f"{path} has rows of more than {width} values, row {at} first: correct them")
    columns = list(header[:width]) if is_exact else _rename(header[:width], known_columns)
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has several columns {shorten_names(repeated)}: leave one of each")
    filled = [(row + [""] * width)[:width] for _, row in values]
    index = [at - number - 1 for at, _ in values]
    return pd.DataFrame(filled, columns=columns, index=index, dtype="str")


def match_ids(listed: Iterable[str], image_ids: Iterable[str], source: str) -> dict[str, str]:
    """Which image each id of a table means, for those that mean one.

    An id may lack the image's suffix, have another one, lack the folders in front of the name, or differ in
    case. An image that is listed by its own id is meant by no other. Raises UserError for an id that fits
    several images; `source` names the table.
    """
    image_ids = list(image_ids)
    listed = list(dict.fromkeys(listed))
    matched = {name: name for name in set(listed) & set(image_ids)}
    for shorten in (str.strip, without_image_suffix, _file_name, _file_stem):
        for fold in (str, str.casefold):  # as it is, then whatever the case
            matched_images = set(matched.values())
            names_of_text = defaultdict(list)
            images_of_text = defaultdict(list)
            for name in listed:
                if name not in matched:
                    names_of_text[fold(shorten(name))].append(name)
            if not names_of_text:
                return matched
            for image in image_ids:
                if image not in matched_images:
                    images_of_text[fold(shorten(image))].append(image)
            for text, names in names_of_text.items():
                images = images_of_text.get(text, [])
                if len(images) > 1 or (images and len(names) > 1):
                    raise UserError(
                        f"{source}: the ids {shorten_names(names)} may mean {shorten_names(images, ' or ')}: "
                        "write the ids as the images' names"
                    )
                if images:
                    matched[names[0]] = images[0]
    return matched


def without_image_suffix(name: str) -> str:
    """The name without the suffix of an image; other suffixes are part of the name."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _file_name(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _file_stem(name: str) -> str:
    return without_image_suffix(_file_name(name))


def _read_text(path: Path, is_exact: bool) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no plain file: it may never end")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: put the file there") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if (text is None or "\x00" in text) and not is_exact:
        text = _decode_other(content)
    if text is None:
        raise UserError(f"{path} is not a readable CSV file (not UTF-8): save it as CSV UTF-8")
    return text


def _decode_other(content: bytes) -> str | None:
    """UTF-16, or CP949 if all that is no ASCII then is Korean; None for anything else."""
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16")
        if b"\x00" in content[:2]:
            return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
        text = content.decode("cp949")
    except UnicodeDecodeError:
        return None
    return text if HANGUL.match(text) else None


def _read_rows(path: Path, text: str, is_exact: bool) -> list[tuple[int, list[str]]]:
    """Number (from 1) and values of the rows that are not empty."""
    delimiter = "," if is_exact else _delimiter(text)
    csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV file ({error}): correct it") from None
    numbered = list(enumerate(rows, 1))
    if not is_exact:
        numbered = [(at, [value.strip() for value in row]) for at, row in numbered]
        if text.startswith("sep="):  # a line that Excel writes and hides
            numbered = numbered[1:]
    return [(at, row) for at, row in numbered if row]


def _delimiter(text: str) -> str:
    """The one that most of the header's columns are separated by."""
    lines = text.splitlines() or [""]
    if lines[0].startswith("sep=") and len(lines[0]) == 5:
        return lines[0][4]
    return max(DELIMITERS, key=lines[0].count)


def _width(header: list[str], rows: list[list[str]]) -> int:
    """Columns, less those at the end that have neither a name nor a value."""
    width = len(header)
    while width and not header[width - 1]:
        if any(row[width - 1 : width] not in ([], [""]) for row in rows):
            break
        width -= 1
    return width


def _rename(header: list[str], known_columns: Iterable[str]) -> list[str]:
    names = {_plain(name): name for name in known_columns}
    return [names.get(_plain(name), name) for name in header]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", same_text(name)).casefold()
