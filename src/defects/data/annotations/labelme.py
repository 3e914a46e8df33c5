"""labelme: a JSON file for each image; polygons, rectangles, circles, masks, lines and points.

https://github.com/wkentaro/labelme. Lines are drawn LINE_PIXELS wide, and points as circles with a radius of
POINT_PIXELS, as its own programs do.
"""

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from defects.data.annotations.annotation_files import (
    as_size,
    category_name,
    describe_renamed,
    find_by_suffix,
    list_image_names,
    load_json,
)
from defects.data.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Shape,
    as_points,
    box_shape,
    ellipse_points,
)
from defects.data.rle import encode
from defects.messages import UserError

NAME = "labelme"
LINE_PIXELS = 10
POINT_PIXELS = 5


def is_format(value: Any) -> bool:
    """Whether the values of a JSON file are such annotations."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list)


def load(path: Path) -> Annotations:
    """Of a file, or of all such files in a folder. Raises UserError."""
    annotations = Annotations(path, NAME, [], [])
    stated = {}
    for file in find_by_suffix(path, {".json"}):
        value = load_json(file)
        if not is_format(value):
            continue
        size = as_size(value.get("imageHeight"), value.get("imageWidth"))
        shapes = []
        for number, entry in enumerate(value["shapes"]):
            try:
                shapes.append(_read_shape(entry, size))
            except ValueError as error:
                raise UserError(f"{file}: shape {number} has {error}: correct or remove it") from None
        # The path may be that of another computer; labelme itself goes by the name of the file.
        image_path = value.get("imagePath")
        stated[file] = image_path if isinstance(image_path, str) else ""
        names = list_image_names(path, file, stated[file])
        annotations.images.append(AnnotatedImage(names, shapes, file, size))
        annotations.files.append(file)
    annotations.notes += describe_renamed(stated)
    return annotations


def _read_shape(entry: Any, size: tuple[int, int] | None) -> Shape:
    if not isinstance(entry, dict):
        raise ValueError("no keys and values")
    category = category_name(entry.get("label"))
    kind = str(entry.get("shape_type") or "polygon")
    points = as_points(entry.get("points") or [])
    if kind in ("polygon", "oriented_rectangle"):
        return Shape(category, "polygon" if kind == "polygon" else "box", points)
    counts = {"rectangle": 2, "circle": 2, "mask": 2, "line": 2, "point": 1}
    if len(points) != counts.get(kind, len(points)):
        raise ValueError(f"{len(points)} points in place of {counts[kind]} ({kind})")
    if kind == "rectangle":
        return box_shape(category, *points.min(axis=0), *points.max(axis=0))
    if kind == "circle":
        centre, border = points
        radius = float(np.linalg.norm(border - centre))
        return Shape(category, "polygon", ellipse_points(tuple(centre), (radius, radius)))
    if kind == "point":
        return Shape(category, "line", ellipse_points(tuple(points[0]), (POINT_PIXELS, POINT_PIXELS)))
    if size is None:
        raise ValueError("no imageHeight and imageWidth beside it")
    if kind == "mask":
        return Shape(category, "mask", runs=_read_mask(entry.get("mask"), points, size))
    if kind in ("line", "linestrip"):
        drawn = np.zeros(size, np.uint8)
        cv2.polylines(drawn, [np.floor(points).astype(np.int32)], False, 1, LINE_PIXELS)
        return Shape(category, "line", runs=encode(drawn))
    raise ValueError(f"the shape_type {kind!r}, which this program does not know")


def _read_mask(text: Any, points: np.ndarray, size: tuple[int, int]) -> str:
    """A PNG in base64 that lies between two pixels, both included."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            part = np.asarray(picture.convert("L"))
    except Exception:  # of a dozen kinds, for broken files
        raise ValueError("a mask that is no PNG in base64") from None
    (left, top), (right, bottom) = points.astype(int)
    if part.shape != (bottom - top + 1, right - left + 1):
        raise ValueError("a mask that does not fit its two points")
    if left < 0 or top < 0 or right >= size[1] or bottom >= size[0]:
        raise ValueError("a mask that reaches outside its image")
    mask = np.zeros(size, np.uint8)
    mask[top : bottom + 1, left : right + 1] = part
    return encode(mask)
