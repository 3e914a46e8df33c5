"""YOLO text files: one for each image, a line for each defect; boxes, or the outlines of segmentation.

https://docs.ultralytics.com/datasets. A line is a class number, then centre x, centre y, width and height of
a box (and a confidence in predictions), or x and y of at least three points; all in parts of the image. An
image without a file is a normal one. Class names stand in data.yaml (`names`), classes.txt or obj.names.
"""

import re
from pathlib import Path

import numpy as np

from defects.data.annotations.annotation_files import category_name, find_by_suffix, read_text
from defects.data.annotations.shapes import AnnotatedImage, Annotations, Shape, as_points, box_shape
from defects.messages import UserError, shorten_names
from defects.settings import parse_yaml

NAME = "YOLO"
NAME_FILES = ("classes.txt", "obj.names", "_classes.txt", "labels.txt")
SPLIT_NAMES = {"train", "val", "valid", "test"}  # of folders beside or inside `images` and `labels`
LARGEST_PART = 2.0  # of the image: larger numbers are pixels


def is_format(file: Path) -> bool:
    """Whether a text file begins with a number, or is empty.

    Numbers with commas between them are labels too: reading these says what is wrong.
    """
    if file.name.lower() in NAME_FILES:
        return False
    words = re.split(r"[\s,;]+", read_text(file).strip(), maxsplit=1)
    return not words[0] or _is_number(words[0])


def load(path: Path) -> Annotations:
    """Of the text files below a folder, that of data.yaml where this is named. Raises UserError."""
    folder = path if path.is_dir() else path.parent
    names = _read_names(folder if path.is_dir() else path)
    annotations = Annotations(path, NAME, [], [], lists_normal=False)
    texts = find_by_suffix(folder, {".txt"})
    for file in texts:
        if is_format(file):
            annotations.images.append(_read_file(file, folder, names))
            annotations.files.append(file)
    others = [file.name for file in texts if file not in annotations.files and file.name not in NAME_FILES]
    if others:
        annotations.notes.append(f"{len(others)} text files hold no YOLO labels: {shorten_names(others)}")
    if names is None and annotations.shapes:
        annotations.notes.append(
            f"{path} has neither a data.yaml nor a classes.txt: categories have their numbers as names"
        )
    return annotations


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_file(file: Path, folder: Path, names: dict[int, str] | None) -> AnnotatedImage:
    shapes = []
    lines = [line.split() for line in read_text(file).split("\n")]
    for number, words in enumerate(lines, start=1):
        if not words:
            continue
        try:
            shapes.append(_read_line(words, names))
        except ValueError as error:
            raise UserError(f"{file}: line {number} has {error}: correct or remove it") from None
    # As YOLO has it, labels/a.txt belongs to images/a.jpg.
    parts = list(file.relative_to(folder).with_suffix("").parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "labels"]
    if places:
        parts[places[-1]] = "images"
    return AnnotatedImage(("/".join(parts), file.stem), shapes, file, is_relative=True)


def _read_line(words: list[str], names: dict[int, str] | None) -> Shape:
    number = int(words[0]) if words[0].isdecimal() else None
    if number is None:
        raise ValueError(f"the class {words[0]}, which is no whole number from 0 up")
    if names is not None and number not in names:
        raise ValueError(f"the class {number}, which its names ({shorten_names(names.values())}) lack")
    category = str(number) if names is None else names[number]
    values = words[1:5] if len(words) == 6 else words[1:]
    points = as_points(values)
    if len(points) < 2:
        raise ValueError(f"{len(words)} values: a box has 5")
    if np.abs(points).max() > LARGEST_PART:
        raise ValueError("coordinates in pixels, where YOLO has parts of the image from 0 to 1")
    if len(points) > 2:
        return Shape(category, "polygon", points)
    (x, y), (width, height) = points
    return box_shape(category, x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _read_names(path: Path) -> dict[int, str] | None:
    """Class names by number; None where no file has them.

    `path`: a YAML file, or a folder to look in, as in those above that belong to it.
    """
    if path.is_file():
        names = _names_in_yaml(path)
        if names is None:
            raise UserError(f"{path} has no list `names` of the classes: add it")
        return names
    folders = [path, path.parent]
    if "labels" in (path.name, path.parent.name) and {path.name, path.parent.name} & SPLIT_NAMES:
        folders.append(path.parent.parent)  # of labels/train or train/labels
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
        for file in sorted(files, key=lambda file: file.stem not in ("data", "dataset")):
            names = _names_in_yaml(file)
            if names is not None:
                return names
        for name in NAME_FILES:
            if (folder / name).is_file():
                lines = read_text(folder / name).split("\n")
                return dict(enumerate(category_name(line) for line in lines if line.strip()))
    return None


def _names_in_yaml(file: Path) -> dict[int, str] | None:
    try:
        values = parse_yaml(read_text(file))
        names = values.get("names") if isinstance(values, dict) else None
        if isinstance(names, str) and names.startswith("["):
            names = parse_yaml(names)
        if isinstance(names, list):
            return dict(enumerate(category_name(name) for name in names))
        if isinstance(names, dict):
            return {int(number): category_name(name) for number, name in names.items()}
    except ValueError as error:
        raise UserError(f"{file}: `names` is no list of classes ({error}): correct it") from None
    return None
