"""Run-length masks of the Severstal family, and tables of them.

Runs are `start length` pairs, from 1, down the columns, left to right. A table that was read, in any form
that the competition has given, has one row per image and class: image_id, target (the class), runs ("" where
there are none).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
import pandas as pd

from defects.data.images import IMAGE_SUFFIXES
from defects.data.user_tables import match_ids, read_user_table
from defects.files import same_text, write_csv
from defects.messages import UserError, shorten_names

RUN_CHARACTERS = set("0123456789 -")  # int() would take 1_000 and other alphabets; a minus has its own reason
UNLIMITED_SIZE = (2**31, 2**31)  # of an image that holds any run

Form = Literal["joined", "split"]
FORM_COLUMNS = {
    "joined": ["ImageId_ClassId", "EncodedPixels"],  # 2019: ids are `0002cc93b.jpg_1`, clean rows empty
    "split": ["ImageId", "EncodedPixels", "ClassId"],  # since then: clean images absent
}
RLE_COLUMNS = ["image_id", "target", "runs"]
EVERY_CLASS = "0"  # ClassId of the newer sample submission, which has one row per image
NO_MASK = {"", "-1", "0", "nan", "none", "null", "na", "n/a", "<na>", "[]"}  # what programs write for none
NO_CLASS = {"", "-1", "0", "nan", "none", "null", "na", "n/a", "<na>"}


def encode(mask: np.ndarray) -> str:
    """The runs of bool or uint8 [H, W], nonzero is defect; "" for an empty mask."""
    pixels = cv2.transpose((mask != 0).view(np.uint8)).ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0] * pixels[0], edges, [len(pixels)] * pixels[-1]]).astype(np.int64)
    return _format_runs(edges[::2], edges[1::2])


def decode(runs: str, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] of 0 and 1. Raises ValueError like `parse`."""
    starts, ends = parse(runs, shape)
    height, width = shape
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
    values = np.arange(len(edges) - 1, dtype=np.uint8) & 1  # a gap, a run, a gap, ...
    return cv2.transpose(np.repeat(values, np.diff(edges)).reshape(width, height))


def unite(texts: list[str]) -> str:
    """The runs of several masks of one image, overlapping or not. Raises ValueError like `parse`."""
    starts, ends = np.concatenate([parse(text, UNLIMITED_SIZE) for text in texts], axis=1)
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    ends = np.maximum.accumulate(ends[order])
    is_first = np.append(True, starts[1:] > ends[:-1])  # runs that touch become one
    is_last = np.append(is_first[1:], True)
    return _format_runs(starts[is_first], ends[is_last])


def parse(runs: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (exclusive) of the runs, int64 [R], counted from 0 down the columns of (H, W).

    Raises ValueError, with a short reason, for what is no sorted list of separate runs inside the image.
    """
    values = _parse_numbers(runs)
    if len(values) % 2:
        raise ValueError(f"odd number of values ({len(values)})")
    starts = values[::2] - 1
    lengths = values[1::2]
    if (lengths < 1).any():
        raise ValueError(f"run length {lengths[lengths < 1][0]} is below 1")
    if (starts < 0).any():
        raise ValueError(f"run start {starts.min() + 1} is below 1")
    if (starts[1:] <= starts[:-1]).any():
        raise ValueError("runs are not sorted")
    pixels = shape[0] * shape[1]
    # Compared without adding start and length: a number near 2^63 would wrap around.
    if (lengths[:-1] > np.diff(starts)).any():
        raise ValueError("runs overlap")
    if len(starts) and lengths[-1] > pixels - starts[-1]:
        raise ValueError(f"a run ends past the last of {pixels} pixels ({shape[1]}x{shape[0]})")
    return starts, starts + lengths


def _format_runs(starts: np.ndarray, ends: np.ndarray) -> str:
    """Of starts and ends (exclusive), int64 [R], counted from 0."""
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def _parse_numbers(runs: str) -> np.ndarray:
    try:
        if set(runs) <= RUN_CHARACTERS:
            return np.array(runs.split(), np.int64)
    except (ValueError, OverflowError):
        pass
    raise ValueError("not made of whole numbers")


def table_form(path: Path) -> Form:
    """Which form the file has. Raises UserError if it has neither."""
    return _find_form(path, _read(path, is_exact=True))


def read_rle_table(path: Path, classes: list[str]) -> pd.DataFrame:
    """A sample or a submission. RLE_COLUMNS as text in the file's order; index i is row i + 2 of the file.

    A row for every class stands for each row of a sample submission that names none: class 0 and the
    same placeholder in all rows. The runs themselves are not checked: `check_runs`. Raises UserError
    naming the first row with an unknown class, a malformed id, or an image and class that came before.
    """
    raw = _read(path, is_exact=True)
    table = _to_columns(path, raw, classes)
    _check_names(path, table)
    if not _names_no_class(table, classes):
        _check_classes(path, table, classes)
        _check_repeated(path, table)
        return table
    _check_repeated(path, table)
    return _for_every_class(table, classes)[RLE_COLUMNS].reset_index(drop=True)


def read_annotations(
    path: Path, classes: list[str], images: Collection[str], unlisted: Literal["error", "drop"] = "error"
) -> pd.DataFrame:
    """Masks that people have marked, of images with these ids. RLE_COLUMNS; index i is row i + 2 of the file.

    As read_rle_table, but what is meant counts: any of NO_MASK stands for no mask, without a class (NO_CLASS)
    for none of any class; class `1.0` is `1`; ids may lack the suffix (`match_ids`); several rows of one
    image and class stand for parts of one mask (`all_pairs` unites them). `unlisted` rows of other classes
    stay in the table with "drop". Ids that fit no image stay as they are.
    """
    raw = _read(path, is_exact=False)
    table = _to_columns(path, raw, classes, images)
    runs = table["runs"].where(~table["runs"].str.lower().isin(NO_MASK), "")
    target = table["target"].map({name: find_class(name, classes) for name in table["target"].unique()})
    ids = match_ids(table["image_id"], images, str(path))
    image_id = table["image_id"].map(lambda name: ids.get(name, name))
    table = table.assign(image_id=image_id, target=target, runs=runs)
    is_clean = (runs == "") & table["target"].str.lower().isin(NO_CLASS) & ~table["target"].isin(classes)
    marked = table[~is_clean]
    _check_names(path, table)
    if unlisted == "error":
        _check_classes(path, marked, classes, ", or leave its rows out with data.unlisted_classes=drop")
    clean = _for_every_class(table[is_clean], classes)
    return pd.concat([marked, clean])[RLE_COLUMNS].sort_index(kind="stable")


def write_rle_table(path: Path, table: pd.DataFrame, form: Form) -> None:
    """Write the rows of a long table, all of them, in their order; `written_id`, if there, is the image's."""
    image_id = table.get("written_id", table["image_id"])
    if form == "joined":
        columns = {"ImageId_ClassId": image_id + "_" + table["target"], "EncodedPixels": table["runs"]}
    else:
        columns = {"ImageId": image_id, "EncodedPixels": table["runs"], "ClassId": table["target"]}
    write_csv(path, pd.DataFrame(columns))


def all_pairs(table: pd.DataFrame, image_ids: Iterable[str], classes: list[str]) -> pd.DataFrame:
    """The long table with one row for every image and class, in that order, empty where it had none.

    Several rows of one image and class are united.
    """
    pairs = pd.MultiIndex.from_product([image_ids, classes], names=RLE_COLUMNS[:2])
    if table.duplicated(RLE_COLUMNS[:2]).any():
        runs = table.groupby(RLE_COLUMNS[:2])["runs"].agg(_unite)
    else:
        runs = table.set_index(RLE_COLUMNS[:2])["runs"]
    return runs.reindex(pairs, fill_value="").reset_index()


def check_runs(table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]] | pd.Series, path: Path) -> None:
    """Raises UserError naming the first row whose runs are no mask of its image, and how many there are.

    `table` is that read from `path`, `sizes` holds (height, width) by image_id.
    """
    problems = []
    for row in table[table["runs"] != ""].itertuples():
        description = f"row {row.Index + 2} ({row.image_id}, class {row.target})"
        if row.image_id not in sizes:
            problems.append(f"{description}: there is no such image")
            continue
        try:
            parse(row.runs, sizes[row.image_id])
        except ValueError as error:
            problems.append(f"{description}: {error}")
    if problems:
        more = f" (and {len(problems) - 1} more such rows)" if len(problems) > 1 else ""
        raise UserError(f"{path}: {problems[0]}{more}; correct or remove it")


def _unite(runs: pd.Series) -> str:
    marked = [text for text in dict.fromkeys(runs) if text]
    if len(marked) < 2:
        return "".join(marked)
    try:
        return unite(marked)
    except ValueError:  # check_runs names the row
        return marked[0]


def _read(path: Path, is_exact: bool) -> pd.DataFrame:
    columns = sorted({name for columns in FORM_COLUMNS.values() for name in columns})
    return read_user_table(path, columns, is_exact)


def _find_form(path: Path, raw: pd.DataFrame) -> Form:
    for form, columns in FORM_COLUMNS.items():
        if sorted(raw.columns) == sorted(columns):
            return form
    for columns in FORM_COLUMNS.values():
        extra = [name or "one without a name" for name in raw.columns if name not in columns]
        if extra and set(columns) < set(raw.columns):
            raise UserError(
                f"{path} has columns beside {', '.join(columns)}: {shorten_names(extra)}; remove them"
            )
    expected = " or ".join(", ".join(columns) for columns in FORM_COLUMNS.values())
    raise UserError(f"{path} has the columns {shorten_names(raw.columns)}; expected {expected}")


def _to_columns(
    path: Path, raw: pd.DataFrame, classes: list[str], images: Collection[str] = ()
) -> pd.DataFrame:
    """RLE_COLUMNS of a table in any form; `images`, if there are any, are those that joined ids may mean."""
    form = _find_form(path, raw)
    runs = raw["EncodedPixels"].str.strip()
    if form == "split":
        image_id = raw["ImageId"].map(same_text)
        target = raw["ClassId"].map(same_text).str.strip()
        return pd.DataFrame({"image_id": image_id, "target": target, "runs": runs}, dtype="str")
    pairs = []
    for row, text in raw["ImageId_ClassId"].items():
        readings = _split_id(same_text(text), classes, images)
        subject = f"{path}: row {row + 2}: the id {text!r}"
        if not readings:
            raise UserError(f"{subject} is not of the kind NAME.jpg_CLASS")
        if len(readings) > 1:
            meanings = " or ".join(f"image {image}, class {target}" for image, target in readings)
            raise UserError(f"{subject} may mean {meanings}: write image ids with their suffix")
        pairs.append(readings[0])
    ids = pd.DataFrame(pairs, columns=RLE_COLUMNS[:2], index=raw.index, dtype="str")
    return ids.assign(runs=runs)


def _split_id(text: str, classes: list[str], images: Collection[str]) -> list[tuple[str, str]]:
    """Image and class that a joined id can stand for: a class may hold `_`, and so may an image."""
    readings = []
    for name in classes:
        image = text.removesuffix(f"_{name}")
        if image and image != text:
            readings.append((image, name))
    if not readings:
        image, _, target = text.rpartition("_")
        return [(image, target)] if image and target else []
    if len(readings) > 1:
        existing = [pair for pair in readings if pair[0] in images]
        with_suffix = [pair for pair in readings if PurePosixPath(pair[0]).suffix.lower() in IMAGE_SUFFIXES]
        return existing or with_suffix or readings
    return readings


def find_class(text: str, classes: list[str]) -> str:
    """The class that a table means: `1.0` is `1`, `Scratch` is `scratch`; else the text itself."""
    if text in classes:
        return text
    equal = [name for name in classes if name.casefold() == text.casefold()]
    if not equal:
        number = _as_number(text)
        equal = [name for name in classes if number is not None and _as_number(name) == number]
    return equal[0] if len(equal) == 1 else text


def _as_number(text: str) -> float | None:
    is_number = re.fullmatch(r"[+-]?\d+([.,]\d*)?", text, re.ASCII)
    return float(text.replace(",", ".")) if is_number else None


def _names_no_class(table: pd.DataFrame, classes: list[str]) -> bool:
    """Whether it is a sample that leaves the classes open; a 0 in real annotations is a mistake."""
    if table.empty or EVERY_CLASS in classes:
        return False
    return bool((table["target"] == EVERY_CLASS).all() and table["runs"].nunique() == 1)


def _for_every_class(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Each row once for each class."""
    return table.assign(target=[classes] * len(table)).explode("target").astype({"target": "str"})


def _check_names(path: Path, table: pd.DataFrame) -> None:
    nameless = table["image_id"] == ""
    if nameless.any():
        raise UserError(f"{path}: row {nameless.idxmax() + 2}: the image has no name")


def _check_classes(path: Path, table: pd.DataFrame, classes: list[str], way_out: str = "") -> None:
    unknown = ~table["target"].isin(classes)
    if unknown.any():
        row = unknown.idxmax()
        raise UserError(
            f"{path}: row {row + 2}: class {table['target'][row]} is none of {', '.join(classes)}: "
            f"correct it or data.classes{way_out}"
        )


def _check_repeated(path: Path, table: pd.DataFrame) -> None:
    repeated = table.duplicated(RLE_COLUMNS[:2])
    if repeated.any():
        row = repeated.idxmax()
        image_id, target = table.loc[row, RLE_COLUMNS[:2]]
        raise UserError(
            f"{path}: row {row + 2}: {image_id} with class {target} came before: remove one of the rows"
        )
