"""COCO JSON: polygons, run-length masks (compressed or not) and boxes, several categories.

https://cocodataset.org/#format-data. Boxes are x, y, width, height from 0. A crowd (`iscrowd`) marks defects
as any mask does. Of several files, as for training and validation, all are read.
"""

from pathlib import Path
from typing import Any

from defects.data.annotations.annotation_files import (
    as_size,
    category_name,
    find_by_suffix,
    load_json,
    with_folder,
)
from defects.data.annotations.coco_rle import decompress_counts, runs_of_counts
from defects.data.annotations.shapes import AnnotatedImage, Annotations, Shape, as_points, box_shape
from defects.messages import UserError, shorten_names

NAME = "COCO"


def is_format(value: Any) -> bool:
    """Whether the values of a JSON file are such annotations."""
    return isinstance(value, dict) and isinstance(value.get("images"), list) and "annotations" in value


def load(path: Path) -> Annotations:
    """Of a file, or of all such files in a folder. Raises UserError."""
    annotations = Annotations(path, NAME, [], [])
    for file in find_by_suffix(path, {".json"}):
        value = load_json(file)
        if is_format(value):
            _add_file(annotations, file, value)
    return annotations


def _add_file(annotations: Annotations, file: Path, value: dict[str, Any]) -> None:
    categories = {}
    for entry in _list_of(file, value, "categories"):
        category_id = _id_text(entry.get("id"))
        if category_id in categories:
            raise UserError(f"{file}: two categories have the id {category_id}: export it again")
        categories[category_id] = category_name(entry.get("name"))
    images = {}
    shapes: dict[str, list[Shape]] = {}
    for number, entry in enumerate(_list_of(file, value, "images")):
        if not isinstance(entry.get("file_name"), str) or "id" not in entry:
            raise UserError(f"{file}: image {number} has no id or no file_name: export it again")
        image_id = _id_text(entry["id"])
        if image_id in images:
            names = f"{images[image_id]['file_name']} and {entry['file_name']}"
            raise UserError(f"{file}: the images {names} have the same id, {image_id}: export it again")
        images[image_id] = entry
        shapes[image_id] = []
    of_no_image = []
    for number, entry in enumerate(_list_of(file, value, "annotations")):
        name = entry.get("id", number)
        image_id = _id_text(entry.get("image_id"))
        category_id = _id_text(entry.get("category_id"))
        if image_id not in images:
            of_no_image.append(name)
            continue
        if category_id not in categories:
            raise UserError(
                f"{file}: annotation {name} has category_id {category_id}, which `categories` does not list "
                f"({shorten_names(categories) or 'it is empty'}): add it there, or remove the annotation"
            )
        try:
            shapes[image_id] += _read_shapes(entry, categories[category_id], images[image_id])
        except ValueError as error:
            place = f"{file}: annotation {name} of {images[image_id]['file_name']}"
            raise UserError(f"{place} has {error}: correct or remove it") from None
    if of_no_image:
        annotations.notes.append(
            f"{len(of_no_image)} annotations of {file.name} belong to no image that it lists, and are left "
            f"out: {shorten_names(of_no_image)}"
        )
    for image_id, entry in images.items():
        size = as_size(entry.get("height"), entry.get("width"))
        names = with_folder(annotations.path, file, [entry["file_name"]])
        annotations.images.append(AnnotatedImage(names, shapes[image_id], file, size))
    annotations.files.append(file)


def _id_text(value: Any) -> str:
    """An id as text, since tools write 1, 1.0 and "1" for the same one."""
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def _list_of(file: Path, value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = value.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file}: `{key}` is no list of objects: export it again")
    return entries


def _read_shapes(entry: dict[str, Any], category: str, image: dict[str, Any]) -> list[Shape]:
    """Of one annotation: its polygons or its mask, else its box. Raises ValueError."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return [Shape(category, "mask", runs=_read_runs(segmentation, image))]
    if segmentation:
        if not isinstance(segmentation, list):
            raise ValueError("a segmentation that is neither a list nor a mask")
        polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
        return [Shape(category, "polygon", as_points(polygon)) for polygon in polygons]
    corners = as_points(entry.get("bbox") or [])
    if len(corners) != 2:
        raise ValueError("neither a segmentation nor a bbox of four numbers")
    (left, top), (width, height) = corners
    return [box_shape(category, left, top, left + width, top + height)]


def _read_runs(segmentation: dict[str, Any], image: dict[str, Any]) -> str:
    size = segmentation.get("size")
    mask_size = as_size(*size) if isinstance(size, list) and len(size) == 2 else None
    image_size = as_size(image.get("height"), image.get("width"))
    if mask_size is None:
        raise ValueError("a run-length mask without its size")
    if image_size is not None and mask_size != image_size:
        sizes = f"{mask_size[1]}x{mask_size[0]} pixels, its image {image_size[1]}x{image_size[0]}"
        raise ValueError(f"a run-length mask of {sizes}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = decompress_counts(counts)
    if not isinstance(counts, list):
        raise ValueError("a run-length mask without counts")
    return runs_of_counts(counts, mask_size)
