"""Pascal VOC: an XML file of boxes for each image; folders SegmentationClass of label images.

http://host.robots.ox.ac.uk/pascal/VOC. Boxes count pixels from 1 and include the last one; files of programs
that count from 0 are recognised by a 0 or a fraction. In a label image 0 is background and 255 a border that
counts as neither; the names of the others stand in labelmap.txt (with colours) or class_names.txt. Where an
image has both, the label image counts.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from defects.data.annotations.annotation_files import (
    as_size,
    category_name,
    describe_renamed,
    find_by_suffix,
    list_image_names,
    read_text,
)
from defects.data.annotations.shapes import AnnotatedImage, Annotations, Shape, as_points, box_shape
from defects.data.images import decode_colours, read_content
from defects.data.rle import encode
from defects.messages import UserError

NAME = "Pascal VOC"
LABEL_FOLDERS = ("segmentationclass", "segmentationclasspng")
NAME_FILES = ("class_names.txt", "label_names.txt", "classes.txt")
BACKGROUND = 0
BORDER = 255
BOUNDS = ("xmin", "ymin", "xmax", "ymax")


def is_format(file: Path) -> bool:
    """Whether an XML file is such an annotation."""
    try:
        return ElementTree.fromstring(_read_xml(file)).tag == "annotation"
    except ElementTree.ParseError:
        return True  # loading it says what is wrong


def is_label_folder(path: Path) -> bool:
    return path.is_dir() and path.name.lower() in LABEL_FOLDERS


def load(path: Path) -> Annotations:
    """Of an XML file, or of all such files and label images in a folder. Raises UserError."""
    annotations = Annotations(path, NAME, [], [])
    stated = {}
    for file in find_by_suffix(path, {".xml"}):
        root = _read_root(file)
        if root.tag != "annotation":
            continue
        stated[file] = category_name(root.findtext("filename"))
        names = list_image_names(path, file, stated[file])
        annotations.images.append(_read_annotation(file, root, names))
        annotations.files.append(file)
    annotations.notes += describe_renamed(stated)
    annotations.images = _count_from_corner(annotations)
    label_images = _read_label_folders(path, annotations)
    if label_images:
        with_masks = {image.source.stem for image in label_images}
        boxes = [image for image in annotations.images if image.source.stem not in with_masks]
        replaced = len(annotations.images) - len(boxes)
        if replaced:
            annotations.notes.append(f"{replaced} images have boxes and a label image: the latter counts")
        annotations.images = boxes + label_images
    return annotations


# --- boxes -------------------------------------------------------------------------------------------------


def _read_xml(file: Path) -> str:
    text = read_text(file)
    if "<!ENTITY" in text:
        raise UserError(f"{file} defines entities, which no annotation needs: export it again")
    return text


def _read_root(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(_read_xml(file))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file} is not a complete XML file ({error}): export or copy it again") from None


def _read_annotation(file: Path, root: ElementTree.Element, names: tuple[str, ...]) -> AnnotatedImage:
    shapes = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            shapes.append(_read_object(element))
        except ValueError as error:
            raise UserError(f"{file}: object {number} has {error}: correct or remove it") from None
    size = as_size(root.findtext("size/height"), root.findtext("size/width"))
    return AnnotatedImage(names, shapes, file, size)


def _read_object(element: ElementTree.Element) -> Shape:
    category = category_name(element.findtext("name"))
    polygon = element.find("polygon")
    if polygon is not None and len(polygon) > 0:
        if polygon.find("pt") is not None:
            values = [(point.findtext("x"), point.findtext("y")) for point in polygon.findall("pt")]
        else:
            values = [value.text for value in polygon]
        return Shape(category, "polygon", as_points(values))
    bounds = [element.findtext(f"bndbox/{bound}") for bound in BOUNDS]
    if None in bounds:
        raise ValueError("no bndbox of xmin, ymin, xmax and ymax")
    (left, top), (right, bottom) = as_points(bounds)
    return box_shape(category, left, top, right, bottom)


def _count_from_corner(annotations: Annotations) -> list[AnnotatedImage]:
    """The images with boxes that count pixels from 1 changed to ones that begin at the corner, 0."""
    boxes = [shape.points for shape in annotations.shapes if shape.kind == "box"]
    if any((points < 1).any() or (points % 1 != 0).any() for points in boxes):
        annotations.notes.append(f"boxes of {annotations.path} count pixels from 0, not from 1 as VOC does")
        return annotations.images
    images = []
    for image in annotations.images:
        shapes = []
        for shape in image.shapes:
            if shape.kind == "box":
                first = shape.points.min(axis=0) - 1
                shape = box_shape(shape.category, *first, *shape.points.max(axis=0))
            shapes.append(shape)
        images.append(replace(image, shapes=shapes))
    return images


# --- label images ------------------------------------------------------------------------------------------


def _read_label_folders(path: Path, annotations: Annotations) -> list[AnnotatedImage]:
    if path.is_file():
        return []
    is_named = is_label_folder(path) or not annotations.files  # a folder of label images of any name
    images = []
    for file in find_by_suffix(path, {".png"}):
        if is_named or is_label_folder(file.parent):
            names, colours = _read_label_names(file.parent)
            images.append(_read_label_image(file, names, colours))
            annotations.files.append(file)
    return images


def _read_label_names(folder: Path) -> tuple[dict[int, str], dict[tuple[int, ...], str]]:
    """Names by number, and by colour, from the files beside a folder of label images; empty without any."""
    for place in (folder, folder.parent):
        if (place / "labelmap.txt").is_file():
            return _read_label_map(place / "labelmap.txt")
        for name in NAME_FILES:
            if (place / name).is_file():
                lines = [category_name(line) for line in read_text(place / name).split("\n")]
                lines = [line for line in lines if line and line not in ("__ignore__",)]
                return dict(enumerate(lines)), {}
    return {}, {}


def _read_label_map(file: Path) -> tuple[dict[int, str], dict[tuple[int, ...], str]]:
    """Lines `name:r,g,b:parts:actions`; the number of a line is the label's."""
    colours = {}
    lines = [line for line in read_text(file).split("\n") if line.strip() and not line.startswith("#")]
    for line in lines:
        name, _, colour_text = line.partition(":")
        try:
            colour = tuple(int(value) for value in colour_text.partition(":")[0].split(","))
        except ValueError:
            raise UserError(f"{file}: the line {line.strip()!r} is not name:r,g,b:: - correct it") from None
        colours[colour] = category_name(name)
    return dict(enumerate(colours.values())), colours


def _read_label_image(
    file: Path, names: dict[int, str], colours: dict[tuple[int, ...], str]
) -> AnnotatedImage:
    content, header = read_content(file, is_strict=True)
    if header.channels in ("palette", "grey"):
        with Image.open(file) as picture:
            labels = np.asarray(picture)
        shapes = _read_numbers(labels, names)
    elif colours:
        labels = decode_colours(file, content, header)
        shapes = _read_colours(file, labels, colours)
    else:
        raise UserError(
            f"{file} is a picture of colours: export it with a palette, or put labelmap.txt beside its "
            "folder; masks without classes belong into data.folders.masks"
        )
    return AnnotatedImage((file.stem,), shapes, file, labels.shape[:2])


def _read_numbers(labels: np.ndarray, names: dict[int, str]) -> list[Shape]:
    """Of label numbers [H, W]."""
    values = [int(value) for value in np.unique(labels) if value != BACKGROUND]
    if values == [BORDER]:  # a mask in black and white
        return [Shape("", "mask", runs=encode(labels))]
    shapes = []
    for value in values:
        if value != BORDER:
            shapes.append(Shape(names.get(value, str(value)), "mask", runs=encode(labels == value)))
    return shapes


def _read_colours(file: Path, labels: np.ndarray, colours: dict[tuple[int, ...], str]) -> list[Shape]:
    """Of colours [H, W, 3]. Raises UserError for one that is not listed."""
    is_listed = np.zeros(labels.shape[:2], bool)
    shapes = []
    for colour, name in colours.items():
        mask = (labels == np.array(colour)).all(axis=2)
        is_listed |= mask
        if name.strip("_").lower() != "background" and mask.any():
            shapes.append(Shape(name, "mask", runs=encode(mask)))
    if not is_listed.all():
        red, green, blue = labels[~is_listed][0].tolist()
        raise UserError(f"{file} holds the colour {red},{green},{blue}, which labelmap.txt lacks: add it")
    return shapes
