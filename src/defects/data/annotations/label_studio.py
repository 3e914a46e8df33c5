"""Label Studio: the exports JSON and JSON-MIN; brush masks, polygons, rectangles and ellipses.

https://labelstud.io/guide/export. Coordinates are per cent of the image. Tasks that nobody has answered are
unknown; predictions of a model are not read.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from defects.data.annotations.annotation_files import as_size, category_name, find_by_suffix, load_json
from defects.data.annotations.brush_rle import decode_brush
from defects.data.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Shape,
    as_points,
    box_shape,
    ellipse_points,
    rotate_points,
)
from defects.data.images import IMAGE_SUFFIXES
from defects.data.rle import encode
from defects.messages import UserError, shorten_names

NAME = "Label Studio"
UPLOAD_START = re.compile(r"^[0-9a-f]{8}-")  # that Label Studio puts before the names of uploaded files


def is_format(value: Any) -> bool:
    """Whether the values of a JSON file are such annotations."""
    if not isinstance(value, list) or not value or not all(isinstance(task, dict) for task in value):
        return False
    return all(_is_full(task) or _find_image(task) for task in value)


def load(path: Path) -> Annotations:
    """Of a file, or of all such files in a folder. Raises UserError."""
    annotations = Annotations(path, NAME, [], [])
    unanswered = []
    several = []
    for file in find_by_suffix(path, {".json"}):
        tasks = load_json(file)
        if not is_format(tasks):
            continue
        annotations.files.append(file)
        for number, task in enumerate(tasks):
            place = f"{file}: task {task.get('id', number)}"
            image = _find_image(task.get("data", {}) if _is_full(task) else task)
            if image is None:
                raise UserError(f"{place} names no image in its data: export images, not other tasks")
            try:
                answers = _list_answers(task)
                if not answers:
                    unanswered.append(_file_name(image))
                    continue
                if len(answers) > 1:
                    several.append(_file_name(image))
                regions = [region for answer in answers for region in answer]
                annotations.images.append(_read_regions(regions, _possible_names(image), file))
            except ValueError as error:
                raise UserError(f"{place} ({_file_name(image)}) has {error}: correct or remove it") from None
    if unanswered:
        annotations.notes.append(
            f"{len(unanswered)} tasks have no submitted annotation, and are left out: "
            f"{shorten_names(unanswered)}"
        )
    if several:
        annotations.notes.append(
            f"{len(several)} tasks have several annotations each, which are united: {shorten_names(several)}"
        )
    return annotations


def _is_full(task: dict[str, Any]) -> bool:
    """Whether a task is one of JSON, not of JSON-MIN."""
    return isinstance(task.get("data"), dict) and any(key in task for key in ("annotations", "predictions"))


def _find_image(data: dict[str, Any]) -> str | None:
    """The path or address among the data of a task."""
    for value in data.values():
        if isinstance(value, str) and Path(_file_name(value)).suffix.lower() in IMAGE_SUFFIXES:
            return value
    return None


def _file_name(address: str) -> str:
    return _path_of(address).rpartition("/")[2]


def _path_of(address: str) -> str:
    """Of an upload, a file of local storage (`?d=`), or any address."""
    if "?d=" in address:
        path = unquote(address.partition("?d=")[2])
    elif "://" in address:
        path = unquote(address.partition("://")[2].partition("?")[0])
    else:
        path = unquote(address)
    return path.replace("\\", "/")


def _possible_names(address: str) -> tuple[str, ...]:
    name = _file_name(address)
    return tuple(dict.fromkeys([_path_of(address), name, UPLOAD_START.sub("", name)]))


def _list_answers(task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The regions of each person's answer, values and what stands beside them in one dict."""
    if not _is_full(task):
        regions = []
        for value in task.values():
            if isinstance(value, list):
                regions += [entry for entry in value if isinstance(entry, dict)]
        return [regions] if "annotator" in task or "annotation_id" in task or regions else []
    answers = []
    for answer in task.get("annotations") or []:
        if not isinstance(answer, dict) or answer.get("was_cancelled"):
            continue
        regions = []
        results = answer.get("result") or []
        if not isinstance(results, list):
            raise ValueError("a `result` that is no list")
        for result in results:
            if isinstance(result, dict) and isinstance(result.get("value"), dict):
                regions.append(result | result["value"])
        answers.append(regions)
    return answers


def _read_regions(regions: list[dict[str, Any]], names: tuple[str, ...], file: Path) -> AnnotatedImage:
    shapes = []
    size = None
    for region in regions:
        region_size = as_size(region.get("original_height"), region.get("original_width"))
        if region.get("image_rotation"):
            raise ValueError(f"an image_rotation of {region['image_rotation']}: only 0 can be read")
        shape = _read_region(region, region_size)
        if shape is not None:
            shapes.append(shape)
            size = region_size or size
    return AnnotatedImage(names, shapes, file, size, is_relative=True)


def _read_region(region: dict[str, Any], size: tuple[int, int] | None) -> Shape | None:
    """None for what says something of the whole image, such as a choice. Raises ValueError."""
    category = _find_category(region)
    if "rle" in region:
        if size is None:
            raise ValueError("a brush mask without original_width and original_height")
        return Shape(category, "mask", runs=encode(decode_brush(region["rle"], size)))
    if "points" in region:
        return Shape(category, "polygon", as_points(region["points"]) / 100)
    if "radiusX" in region:
        values = as_points([region.get(key) for key in ("x", "y", "radiusX", "radiusY")])
        centre, radii = _in_pixels(values, size)
        points = ellipse_points(tuple(centre), tuple(radii), _rotation(region))
        return Shape(category, "polygon", _in_parts(points, size))
    if "width" in region and "height" in region:
        values = as_points([region.get(key) for key in ("x", "y", "width", "height")])
        if not _rotation(region):
            (left, top), (width, height) = values / 100
            return box_shape(category, left, top, left + width, top + height)
        corner, (width, height) = _in_pixels(values, size)
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
        points = corner + rotate_points(corners, _rotation(region))
        return Shape(category, "box", _in_parts(points, size))
    if category or "x" in region or "vertices" in region:
        kind = region.get("type", "unknown type")
        raise ValueError(f"a region that marks no area ({kind}): only areas can be read")
    return None


def _find_category(region: dict[str, Any]) -> str:
    for key, value in region.items():
        if key.endswith("labels") and isinstance(value, list) and value:
            return category_name(value[0])
    return ""


def _rotation(region: dict[str, Any]) -> float:
    value = region.get("rotation") or 0
    if not isinstance(value, int | float):
        raise ValueError(f"the rotation {value!r}, which is no number")
    return float(value)


def _in_pixels(values: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Rotation needs them: per cent of width and of height differ."""
    if size is None:
        raise ValueError("a rotated region without original_width and original_height")
    return values / 100 * np.array([size[1], size[0]])


def _in_parts(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return points / np.array([size[1], size[0]])
