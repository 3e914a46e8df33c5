"""Tables of run-length masks (defects.data.rle): ImageId, EncodedPixels, and ClassId where there are several.

An image that the table does not name is a normal one, and so is one with an empty mask.
"""

import re
from pathlib import Path

from defects.data.annotations.annotation_files import category_name
from defects.data.annotations.shapes import AnnotatedImage, Annotations, Shape
from defects.data.images import IMAGE_SUFFIXES
from defects.data.rle import NO_MASK, UNLIMITED_SIZE, parse
from defects.data.user_tables import read_user_table
from defects.messages import UserError, shorten_names

NAME = "CSV"
FORMS = (
    ("ImageId", "EncodedPixels"),
    ("ImageId", "EncodedPixels", "ClassId"),
    ("ImageId_ClassId", "EncodedPixels"),
)
# `0002cc93b.jpg_1`: an image and its class.
JOINED_ID = re.compile(
    rf"(.+(?:{'|'.join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))}))_(.+)", re.IGNORECASE
)


def load(path: Path) -> Annotations:
    """Raises UserError, naming the first row that is wrong."""
    table = read_user_table(path, sorted({name for columns in FORMS for name in columns}))
    has_class = "ClassId" in table or "ImageId_ClassId" in table
    if set(table.columns) not in [set(columns) for columns in FORMS]:
        raise UserError(
            f"{path} has the columns {shorten_names(table.columns)}; expected ImageId, EncodedPixels and, "
            "for several classes, ClassId"
        )
    shapes: dict[str, list[Shape]] = {}
    for number, row in zip(table.index, table.to_dict("records"), strict=True):
        name, category = _read_id(row)
        if not name:
            raise UserError(f"{path}: row {number + 2}: the image has no name")
        of_image = shapes.setdefault(name, [])
        runs = row["EncodedPixels"]
        if runs.lower() in NO_MASK:
            continue
        if has_class and not category:
            raise UserError(f"{path}: row {number + 2}: the mask of {name} has no class: add it")
        try:
            parse(runs, UNLIMITED_SIZE)
        except ValueError as error:
            raise UserError(f"{path}: row {number + 2} ({name}): {error}; correct or remove it") from None
        of_image.append(Shape(category, "mask", runs=runs))
    images = [AnnotatedImage((name,), of_image, path) for name, of_image in shapes.items()]
    return Annotations(path, NAME, images, [path], lists_normal=False)


def _read_id(row: dict[str, str]) -> tuple[str, str]:
    """Image and class; no class in a table without."""
    if "ImageId_ClassId" not in row:
        return row["ImageId"], category_name(row.get("ClassId"))
    joined = row["ImageId_ClassId"]
    match = JOINED_ID.fullmatch(joined)
    name, _, category = (match[1], "", match[2]) if match else joined.rpartition("_")
    return name, category_name(category)
