"""Tables of run-length masks, in every form that the Severstal competition has given them.

Read, each has one row per image and class: image_id, target (the class), runs ("" where there are none).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import pandas as pd

from defects.data import rle
from defects.data.images import IMAGE_SUFFIXES
from defects.data.user_tables import match_ids, read_user_table
from defects.files import same_text, write_csv
from defects.messages import UserError, shorten_names

Form = Literal["joined", "split"]
FORM_COLUMNS = {
    "joined": ["ImageId_ClassId", "EncodedPixels"],  # 2019: ids are `0002cc93b.jpg_1`, clean rows empty
    "split": ["ImageId", "EncodedPixels", "ClassId"],  # since then: clean images absent
}
COLUMNS = ["image_id", "target", "runs"]
EVERY_CLASS = "0"  # ClassId of the newer sample submission, which has one row per image
NO_MASK = {"", "-1", "0", "nan", "none", "null", "na", "n/a", "<na>", "[]"}  # what programs write for none
NO_CLASS = {"", "-1", "0", "nan", "none", "null", "na", "n/a", "<na>"}


def table_form(path: Path) -> Form:
    """Which form the file has. Raises UserError if it has neither."""
    return _form(path, _read(path, is_exact=True))


def read_rle_table(path: Path, classes: list[str]) -> pd.DataFrame:
    """A sample or a submission. COLUMNS as text in the file's order; index i is row i + 2 of the file.

    A row for every class stands for each row of a sample submission that names none: class 0 and the
    same placeholder in all rows. The runs themselves are not looked at: `check_runs`. Raises UserError
    naming the first row with an unknown class, a malformed id, or an image and class that came before.
    """
    raw = _read(path, is_exact=True)
    form = _form(path, raw)
    table = _joined(path, raw, classes) if form == "joined" else _split(raw)
    _check_names(path, table)
    if not _names_no_class(table, classes):
        _check_classes(path, table, classes)
        _check_repeated(path, table)
        return table
    _check_repeated(path, table)
    return _for_every_class(table, classes)[COLUMNS].reset_index(drop=True)


def read_annotations(
    path: Path, classes: list[str], images: Collection[str], unlisted: Literal["error", "drop"] = "error"
) -> pd.DataFrame:
    """Masks that people have marked, of the images with these ids. COLUMNS; index i is row i + 2 of the file.

    As read_rle_table, but what is meant counts: any of NO_MASK stands for no mask, without a class (NO_CLASS)
    for none of any class; class `1.0` is `1`; ids may lack the suffix (`match_ids`); several rows of one
    image and class stand for parts of one mask (`all_pairs` unites them). `unlisted` rows of other classes
    stay in the table with "drop". Ids that fit no image stay as they are.
    """
    raw = _read(path, is_exact=False)
    table = _joined(path, raw, classes, images) if _form(path, raw) == "joined" else _split(raw)
    runs = table["runs"].where(~table["runs"].str.lower().isin(NO_MASK), "")
    target = table["target"].map({name: _find_class(name, classes) for name in table["target"].unique()})
    ids = match_ids(table["image_id"], images, str(path))
    image_id = table["image_id"].map(lambda name: ids.get(name, name))
    table = table.assign(image_id=image_id, target=target, runs=runs)
    is_clean = (runs == "") & table["target"].str.lower().isin(NO_CLASS) & ~table["target"].isin(classes)
    marked = table[~is_clean]
    _check_names(path, table)
    if unlisted == "error":
        _check_classes(path, marked, classes, ", or leave its rows out with data.unlisted_classes=drop")
    clean = _for_every_class(table[is_clean], classes)
    return pd.concat([marked, clean])[COLUMNS].sort_index(kind="stable")


def write_rle_table(path: Path, table: pd.DataFrame, form: Form) -> None:
    """Write the rows of a long table, all of them, in their order; `written_id`, if there, is the image's."""
    image = table.get("written_id", table["image_id"])
    target, runs = table["target"], table["runs"]
    if form == "joined":
        written = {"ImageId_ClassId": image + "_" + target, "EncodedPixels": runs}
    else:
        written = {"ImageId": image, "EncodedPixels": runs, "ClassId": target}
    write_csv(path, pd.DataFrame(written))


def all_pairs(table: pd.DataFrame, image_ids: Iterable[str], classes: list[str]) -> pd.DataFrame:
    """The long table with one row for every image and class, in that order, empty where it had none.

    Several rows of one image and class are united.
    """
    pairs = pd.MultiIndex.from_product([image_ids, classes], names=COLUMNS[:2])
    if table.duplicated(COLUMNS[:2]).any():
        runs = table.groupby(COLUMNS[:2])["runs"].agg(_unite)
    else:
        runs = table.set_index(COLUMNS[:2])["runs"]
    return runs.reindex(pairs, fill_value="").reset_index()


def check_runs(table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]] | pd.Series, path: Path) -> None:
    """Raises UserError naming the first row whose runs are no mask of its image, and how many there are.

    `table` is that read from `path`, `sizes` holds (height, width) by image_id.
    """
    marked = table[table["runs"] != ""]
    problems = [(row, _problem(row, sizes)) for row in marked.itertuples()]
    problems = [(row, problem) for row, problem in problems if problem]
    if problems:
        row, problem = problems[0]
        more = f" (and {len(problems) - 1} more such rows)" if len(problems) > 1 else ""
        place = f"row {row.Index + 2} ({row.image_id}, class {row.target})"
        raise UserError(f"{path}: {place}: {problem}{more}; correct or remove it")


def _problem(row: tuple, sizes: Mapping[str, tuple[int, int]] | pd.Series) -> str:
    if row.image_id not in sizes:
        return "there is no such image"
    try:
        rle.parse(row.runs, sizes[row.image_id])
    except ValueError as error:
        return str(error)
    return ""


def _unite(runs: pd.Series) -> str:
    marked = [text for text in dict.fromkeys(runs) if text]
    if len(marked) < 2:
        return "".join(marked)
    try:
        return rle.unite(marked)
    except ValueError:  # check_runs names the row
        return marked[0]


def _read(path: Path, is_exact: bool) -> pd.DataFrame:
    columns = sorted({name for columns in FORM_COLUMNS.values() for name in columns})
    return read_user_table(path, columns, is_exact)


def _form(path: Path, raw: pd.DataFrame) -> Form:
    for form, columns in FORM_COLUMNS.items():
        if sorted(raw.columns) == sorted(columns):
            return form
    for columns in FORM_COLUMNS.values():
        others = [name or "one without a name" for name in raw.columns if name not in columns]
        if others and set(columns) < set(raw.columns):
            raise UserError(
                f"{path} has columns beside {', '.join(columns)}: {shorten_names(others)}; remove them"
            )
    expected = " or ".join(", ".join(columns) for columns in FORM_COLUMNS.values())
    raise UserError(f"{path} has the columns {shorten_names(raw.columns)}; expected {expected}")


def _joined(path: Path, raw: pd.DataFrame, classes: list[str], images: Collection[str] = ()) -> pd.DataFrame:
    """The table with ids taken apart; `images` are those that ids may mean, where they are known."""
    parts = []
    for row, text in raw["ImageId_ClassId"].items():
        readings = _take_apart(same_text(text), classes, images)
        if len(readings) != 1:
            wrong = f"{path}: row {row + 2}: the id {text!r}"
            if not readings:
                raise UserError(f"{wrong} is not of the kind NAME.jpg_CLASS")
            shown = " or ".join(f"image {image}, class {target}" for image, target in readings)
            raise UserError(f"{wrong} may mean {shown}: write image ids with their suffix")
        parts.append(readings[0])
    ids = pd.DataFrame(parts, columns=COLUMNS[:2], index=raw.index, dtype="str")
    return ids.assign(runs=raw["EncodedPixels"].str.strip())[COLUMNS]


def _take_apart(text: str, classes: list[str], images: Collection[str]) -> list[tuple[str, str]]:
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
        on_disk = [part for part in readings if part[0] in images]
        whole = [part for part in readings if PurePosixPath(part[0]).suffix.lower() in IMAGE_SUFFIXES]
        readings = on_disk or whole or readings
    return readings


def _split(raw: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "image_id": raw["ImageId"].map(same_text),
        "target": raw["ClassId"].map(same_text).str.strip(),
        "runs": raw["EncodedPixels"].str.strip(),
    }
    return pd.DataFrame(columns, dtype="str")


def _find_class(text: str, classes: list[str]) -> str:
    """The class that a table means: `1.0` is `1`, `Scratch` is `scratch`; else the text itself."""
    if text in classes:
        return text
    same = [name for name in classes if name.casefold() == text.casefold()]
    if not same:
        number = _as_number(text)
        same = [name for name in classes if number is not None and _as_number(name) == number]
    return same[0] if len(same) == 1 else text


def _as_number(text: str) -> float | None:
    try:
        is_number = re.fullmatch(r"[+-]?\d+([.,]\d*)?", text, re.ASCII)
        return float(text.replace(",", ".")) if is_number else None
    except ValueError:
        return None


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
        target = table["target"][unknown.idxmax()]
        known = ", ".join(classes)
        raise UserError(
            f"{path}: row {unknown.idxmax() + 2}: class {target} is none of {known}: correct it or "
            f"data.classes{way_out}"
        )


def _check_repeated(path: Path, table: pd.DataFrame) -> None:
    repeated = table.duplicated(COLUMNS[:2])
    if repeated.any():
        row = repeated.idxmax()
        image, target = table.loc[row, "image_id"], table.loc[row, "target"]
        raise UserError(
            f"{path}: row {row + 2}: {image} with class {target} came before: remove one of the rows"
        )
