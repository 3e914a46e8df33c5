"""What annotation tools write, in one form: for each image the shapes that mark its defects.

One module for each format, with `load(path) -> Annotations`; `shapes.py` has the common form and draws it,
`matching.py` says which image of the data set is meant, `marking.py` makes masks of it.
"""

import hashlib
from pathlib import Path
from types import ModuleType

from defects.data.annotations import coco, label_studio, labelme, rle_csv, voc, yolo
from defects.data.annotations.annotation_files import find_by_suffix, load_json
from defects.data.annotations.shapes import Annotations
from defects.data.images import IMAGE_SUFFIXES
from defects.messages import UserError

# Modules with NAME and load(path).
FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "label_studio": label_studio,
    "csv": rle_csv,
}
JSON_FORMATS = {"coco": coco, "labelme": labelme, "label_studio": label_studio}
KNOWN_TEXT = (
    "COCO, labelme or Label Studio JSON, YOLO text files, Pascal VOC XML or label images, or a CSV of "
    "run-length masks"
)


def load_annotations(path: Path, format: str | None = None) -> Annotations:
    """What a file or folder of annotations says; its format is recognised unless it is named.

    Raises UserError for what is missing, broken, of no known format, or of several.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: put the annotations there, or change data.annotations")
    if format is None:
        formats = recognise_formats(path)
        if not formats:
            raise UserError(f"{path} holds no annotations that are known: export {KNOWN_TEXT}")
        if len(formats) > 1:
            names = " and ".join(formats)
            raise UserError(f"{path} holds {names}: name a folder of one, or set data.annotation_format")
        format = formats[0]
    annotations = FORMATS[format].load(path)
    if not annotations.files:
        raise UserError(f"{path} holds nothing in the format {format}: correct data.annotation_format")
    return annotations


def recognise_formats(path: Path) -> list[str]:
    """The formats of which a file, or a folder and all below it, has annotations."""
    if path.is_dir():
        return _recognise_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _recognise_json(path)
    if suffix in (".csv", ".tsv"):
        return ["csv"]
    if suffix in (".yaml", ".yml"):
        return ["yolo"]
    if suffix == ".xml" and voc.is_format(path):
        return ["voc"]
    if suffix == ".zip":
        raise UserError(f"{path} is an archive: unpack it, and name what is in it")
    return []


def list_label_folders(annotations: Annotations) -> list[Path]:
    """The folders of label images among the files, which are no images of the data set."""
    return sorted({file.parent for file in annotations.files if file.suffix.lower() in IMAGE_SUFFIXES})


def annotations_sha256(path: Path) -> str | None:
    """Of all that may belong to annotations: files that are no pictures; of label images names and sizes."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            is_picture = file.suffix.lower() in IMAGE_SUFFIXES
            content = str(file.stat().st_size).encode() if is_picture else file.read_bytes()
            digest.update(file.name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _recognise_json(file: Path) -> list[str]:
    value = load_json(file)
    names = [name for name, module in JSON_FORMATS.items() if module.is_format(value)]
    is_list = isinstance(value, list) and value and isinstance(value[0], dict)
    if not names and is_list and "image_id" in value[0]:
        raise UserError(f"{file} holds COCO results alone: name the file that lists images and categories")
    return names


def _recognise_folder(path: Path) -> list[str]:
    formats = []
    for file in find_by_suffix(path, {".json"}):
        formats += [name for name in _recognise_json(file) if name not in formats]
    if any(voc.is_format(file) for file in find_by_suffix(path, {".xml"})):
        formats.append("voc")
    texts = [file for file in find_by_suffix(path, {".txt"}) if file.name.lower() not in yolo.NAME_FILES]
    if any(yolo.is_format(file) and file.stat().st_size for file in texts):
        formats.append("yolo")
    has_label_images = any(voc.is_label_folder(folder) for folder in (path, *path.rglob("*")))
    if not formats and (has_label_images or _holds_only_pngs(path)):
        formats.append("voc")
    return formats


def _holds_only_pngs(path: Path) -> bool:
    suffixes = {file.suffix.lower() for file in path.iterdir() if file.is_file()} - {".txt"}
    return suffixes == {".png"}
