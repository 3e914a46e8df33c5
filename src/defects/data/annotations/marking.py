"""From shapes to the run-length masks of images.csv, once the sizes of the images are known."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from defects.config_schema import DataConfig, resolve
from defects.data.annotations.matching import Marks
from defects.data.annotations.shapes import AnnotatedImage, Fault, draw_shapes
from defects.data.bounded_memory import in_threads
from defects.data.labels import RUNS, class_columns
from defects.data.mask_files import NEARLY_ALL
from defects.data.rle import encode
from defects.messages import UserError, shorten_names

ORIENTATION_TAG = 274  # of EXIF
FAULT_TEXTS: dict[Fault, str] = {
    "too few points": "have polygons of fewer than three points, which mark nothing",
    "outside": "have marks outside the image, which count for nothing",
    "clipped": "have marks that reach over the border of the image, where they end",
    "crossing": "have polygons that cross themselves: what these enclose twice is not marked",
    "nearly all": "are marked nearly all over: correct these marks if they stand for a part",
}


class MarkedImage(NamedTuple):
    """`runs` by class, or of RUNS; `problem`: why the annotations of an image cannot be used."""

    runs: dict[str, str]
    faults: frozenset[Fault] = frozenset()
    is_rotated: bool = False  # drawn on the image as it is stored, before its EXIF rotation
    problem: str = ""


@dataclass
class MarkFacts:
    """What the inventory tells of annotations."""

    path: Path
    format: str
    files: list[Path]
    images: int
    kinds: dict[str, int]  # images by how they are marked: "polygons", "boxes", ...
    categories: dict[str, int]
    notes: list[str]


def mark_images(data: DataConfig, images: pd.DataFrame, marks: Marks) -> tuple[pd.DataFrame, MarkFacts]:
    """The rows of images.csv with the columns of masks, and what the inventory tells of them.

    Raises UserError for annotations that do not fit their images, unless data.bad_masks drops them, and for
    normal images with marks, unless data.contradictions reports them.
    """
    path = marks.annotations.path
    rows = images[images["image_id"].isin(marks.of_image.keys())].to_dict("records")
    marked = list(in_threads(partial(_mark_image, data, marks), rows, text="drawing annotations"))
    notes = []
    contradictions = []
    problems = []
    runs_of = {}
    for row, result in zip(rows, marked, strict=True):
        if result.problem:
            problems.append(result.problem)
        elif row["label"] == 1:
            runs_of[row["image_id"]] = result.runs
        elif any(result.runs.values()):
            contradictions.append(row["path"])
    _refuse_problems(data, path, problems, notes)
    if contradictions:
        text = f"{path} marks defects in normal images: {shorten_names(contradictions)}"
        if data.contradictions == "error":
            raise UserError(f"{text}; move them, or set data.contradictions=report")
        notes.append(f"{text}; these marks are left out")
    notes += _note_faults([row["path"] for row in rows], marked)
    kinds = _count_kinds([row for row in rows if row["image_id"] in runs_of], marks, notes)
    columns = class_columns(data.classes) or [RUNS]
    texts = {}
    for name, column in zip(data.classes or [RUNS], columns, strict=True):
        texts[column] = [runs_of.get(image_id, {}).get(name, "") for image_id in images["image_id"]]
    facts = MarkFacts(
        path,
        marks.annotations.format,
        marks.annotations.files,
        len(runs_of),
        kinds,
        dict(sorted(marks.categories.items())),
        notes,
    )
    return images.assign(**texts), facts


def _note_faults(paths: list[str], marked: list[MarkedImage]) -> list[str]:
    """For the inventory: which images are annotated before their rotation, or have odd shapes."""
    paths_by_text: dict[str, list[str]] = {}
    for path, image in zip(paths, marked, strict=True):
        texts = [FAULT_TEXTS[fault] for fault in FAULT_TEXTS if fault in image.faults]
        if image.is_rotated:
            texts.append("are annotated as they are stored: their marks are rotated as EXIF says")
        for text in texts:
            paths_by_text.setdefault(text, []).append(path)
    return [f"{len(named)} images {text}: {shorten_names(named)}" for text, named in paths_by_text.items()]


def _refuse_problems(data: DataConfig, path: Path, problems: list[str], notes: list[str]) -> None:
    if not problems:
        return
    text = f"{path}: {len(problems)} annotated images cannot be used: {shorten_names(problems, '; ')}"
    if data.bad_masks == "error" or data.classes:
        way_out = "" if data.classes else ", or set data.bad_masks=drop to do without their masks"
        raise UserError(f"{text}: correct or export them again{way_out}")
    notes.append(text)


def _mark_image(data: DataConfig, marks: Marks, row: dict[str, Any]) -> MarkedImage:
    """Of a row of images.csv."""
    size = (row["height"], row["width"])
    faults: frozenset[Fault] = frozenset()
    is_rotated = False
    runs = {}
    for name in data.classes or [RUNS]:
        united = np.zeros(size, bool)
        for entry in marks.of_image[row["image_id"]]:
            shapes = [shape for shape in entry.shapes if name in (RUNS, shape.category)]
            if not shapes:
                continue
            orientation = _find_orientation(resolve(data.root) / row["path"], entry, size)
            if orientation is None:
                stated = f"{entry.size[1]}x{entry.size[0]}"
                problem = f"{row['path']} is {size[1]}x{size[0]}, its annotation says {stated}"
                return MarkedImage({}, problem=problem)
            try:
                drawing = draw_shapes(shapes, entry.size if orientation else size, entry.is_relative)
            except ValueError as error:
                return MarkedImage({}, problem=f"{row['path']} ({error})")
            united |= _rotate(drawing.mask, orientation)
            is_rotated |= orientation > 0
            faults |= drawing.faults
            if drawing.mask.mean() > NEARLY_ALL:
                faults |= {"nearly all"}
        runs[name] = encode(united)
    problem = ""
    if marks.has_shapes(row["image_id"]) and not any(runs.values()):
        problem = f"{row['path']} (no pixel is marked)"
    return MarkedImage(runs, faults, is_rotated, problem)


def _find_orientation(path: Path, entry: AnnotatedImage, size: tuple[int, int]) -> int | None:
    """The EXIF orientation by which marks are to be rotated, 0 where they fit; None if they cannot fit."""
    if entry.size is None or entry.size == size:
        return 0
    if entry.size[::-1] != size:
        return None
    try:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(ORIENTATION_TAG)
    except Exception:  # of a dozen kinds, for files that Pillow does not know
        return None
    return orientation if orientation in (5, 6, 7, 8) else None


def _rotate(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask of the stored image as EXIF says that it is to be seen."""
    if orientation == 5:
        return mask.T
    if orientation == 6:
        return np.rot90(mask, -1)
    if orientation == 7:
        return np.rot90(mask, 2).T
    return np.rot90(mask) if orientation == 8 else mask


def _count_kinds(rows: list[dict[str, Any]], marks: Marks, notes: list[str]) -> dict[str, int]:
    """Images by the kinds of their shapes; those marked by boxes are noted."""
    names = {"polygon": "polygons", "box": "boxes", "mask": "masks", "line": "lines"}
    counts: Counter[str] = Counter()
    with_boxes = []
    for row in rows:
        kinds = {shape.kind for entry in marks.of_image[row["image_id"]] for shape in entry.shapes}
        counts[" and ".join(names[kind] for kind in names if kind in kinds)] += 1
        if "box" in kinds:
            with_boxes.append(row["path"])
    if len(with_boxes) == len(rows) and rows:
        notes.append("masks are boxes: they mark more than the defects, and pixel scores measure boxes")
    elif with_boxes:
        notes.append(
            f"the masks of {len(with_boxes)} of {len(rows)} images are boxes, which mark more than the "
            f"defects: {shorten_names(with_boxes)}"
        )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
