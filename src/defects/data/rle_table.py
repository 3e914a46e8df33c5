"""Tables of run-length masks, in every form that the Severstal competition has given them.

Read, each has one row per image and class: image_id, target (the class), runs ("" where there are none).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from defects.data import rle
from defects.errors import UserError
from defects.files import read_csv, same_text, write_csv

Form = Literal["joined", "split"]
FORM_COLUMNS = {
    "joined": ["ImageId_ClassId", "EncodedPixels"],  # 2019: ids are `0002cc93b.jpg_1`, clean rows empty
    "split": ["ImageId", "EncodedPixels", "ClassId"],  # since then: clean images absent
}
COLUMNS = ["image_id", "target", "runs"]
EVERY_CLASS = "0"  # ClassId of the newer sample submission, which has one row per image


def table_form(path: Path) -> Form:
    """Which form the file has. Raises UserError if it has neither."""
    return _form(path, _read(path))


def read_rle_table(path: Path, classes: list[str]) -> pd.DataFrame:
    """COLUMNS as text in the file's order; index i is row i + 2 of the file, as a spreadsheet counts.

    A row for every class stands for each row of a sample submission that names none: class 0 and the
    same placeholder in all rows. The runs themselves are not looked at: `check_runs`. Raises UserError
    naming the first row with an unknown class, a malformed id, or an image and class that came before.
    """
    raw = _read(path)
    table = _joined(path, raw) if _form(path, raw) == "joined" else _split(raw)
    if not _names_no_class(table, classes):
        _check_rows(path, table, classes)
        return table
    _check_rows(path, table, [EVERY_CLASS])
    return table.assign(target=[classes] * len(table)).explode("target", ignore_index=True)[COLUMNS]


def write_rle_table(path: Path, table: pd.DataFrame, form: Form) -> None:
    """Write the rows of a long table, all of them, in their order."""
    image, target, runs = (table[name] for name in COLUMNS)
    if form == "joined":
        written = {"ImageId_ClassId": image + "_" + target, "EncodedPixels": runs}
    else:
        written = {"ImageId": image, "EncodedPixels": runs, "ClassId": target}
    write_csv(path, pd.DataFrame(written))


def all_pairs(table: pd.DataFrame, image_ids: Iterable[str], classes: list[str]) -> pd.DataFrame:
    """The long table with one row for every image and class, in that order, empty where it had none."""
    pairs = pd.MultiIndex.from_product([image_ids, classes], names=COLUMNS[:2])
    return table.set_index(COLUMNS[:2])["runs"].reindex(pairs, fill_value="").reset_index()


def check_runs(table: pd.DataFrame, sizes: Mapping[str, tuple[int, int]] | pd.Series, path: Path) -> None:
    """Raises UserError naming the first row whose runs are no mask of its image, and how many there are.

    `table` is that of read_rle_table(path), `sizes` holds (height, width) by image_id.
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


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} does not exist: put the file there")
    table = read_csv(path, [], "the competition's archive")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus values for an index
        raise UserError(f"{path} has rows of more than {len(table.columns)} values: correct them")
    return table


def _form(path: Path, raw: pd.DataFrame) -> Form:
    for form, columns in FORM_COLUMNS.items():
        if sorted(raw.columns) == sorted(columns):
            return form
    expected = " or ".join(", ".join(columns) for columns in FORM_COLUMNS.values())
    raise UserError(f"{path} has the columns {', '.join(map(str, raw.columns))}; expected {expected}")


def _joined(path: Path, raw: pd.DataFrame) -> pd.DataFrame:
    ids = raw["ImageId_ClassId"].map(same_text).str.extract(r"^(?P<image_id>.+)_(?P<target>[^_]+)$")
    broken = ids["image_id"].isna()
    if broken.any():
        first = broken.idxmax()
        name = raw["ImageId_ClassId"][first]
        raise UserError(f"{path}: row {first + 2}: the id {name!r} is not of the kind NAME.jpg_CLASS")
    return ids.assign(runs=raw["EncodedPixels"].str.strip())[COLUMNS]


def _split(raw: pd.DataFrame) -> pd.DataFrame:
    columns = raw["ImageId"].map(same_text), raw["ClassId"].str.strip(), raw["EncodedPixels"].str.strip()
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _names_no_class(table: pd.DataFrame, classes: list[str]) -> bool:
    """Whether it is a sample that leaves the classes open; a 0 in real annotations is a mistake."""
    if table.empty or EVERY_CLASS in classes:
        return False
    return bool((table["target"] == EVERY_CLASS).all() and table["runs"].nunique() == 1)


def _check_rows(path: Path, table: pd.DataFrame, classes: list[str]) -> None:
    for wrong, problem in (
        (table["image_id"] == "", "the image has no name"),
        (
            ~table["target"].isin(classes),
            "class {target} is none of {classes}: correct it or data.classes",
        ),
        (table.duplicated(COLUMNS[:2]), "{image_id} with class {target} came before: remove one of the rows"),
    ):
        if wrong.any():
            row = table.loc[wrong.idxmax()]
            text = problem.format(**row, classes=", ".join(classes))
            raise UserError(f"{path}: row {wrong.idxmax() + 2}: {text}")
