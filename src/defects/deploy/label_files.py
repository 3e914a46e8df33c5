"""Predictions as files of annotation tools, for people to correct: COCO JSON, labelme, Label Studio.

What they correct there, prepare.py reads again (data.annotations). Neither torch nor pandas is imported.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from defects.deploy.model import Meta
from defects.deploy.outlines import Outline, outline_prediction
from defects.deploy.prediction import Prediction, locate, path_text
from defects.files import write_bytes
from defects.messages import UserError


class LabelledImage(NamedTuple):
    """One image that could be read; `name`: its path below the folder that holds all of them, with `/`."""

    path: Path
    name: str
    size: tuple[int, int]  # height, width
    outlines: list[Outline]


class LabelFile:
    """Collects predictions with `add`, and writes them with `save`.

    Raises UserError at once for a model without maps, and for labels that exist: people may have corrected
    them.
    """

    def __init__(self, path: Path, meta: Meta, files: Sequence[Path]):
        if meta.map is None:
            raise UserError(
                f"--output {path}: {meta.detector} makes no maps, so that there are no outlines to correct; "
                "write FILE.csv"
            )
        if path.exists():
            raise UserError(
                f"--output {path} exists, and may hold corrections: move it, or choose another name"
            )
        self.path = path
        self.meta = meta
        self.images: list[LabelledImage] = []
        self.unmarked: list[str] = []  # defective images without a part that is marked
        self._folder = _common_folder(files)

    def add(self, prediction: Prediction) -> None:
        """A file with an error is left out."""
        if prediction.error:
            return
        location = locate([prediction.path])[0]
        name = path_text(PurePath(os.path.relpath(location, self._folder))).replace(os.sep, "/")
        outlines = outline_prediction(prediction, self.meta)
        if outlines and not prediction.regions:
            self.unmarked.append(name)
        self.images.append(LabelledImage(location, name, prediction.shape, outlines))

    def save(self) -> None:
        """Raises UserError if the file cannot be written."""
        try:
            find_label_format(self.path)(self.path, self.meta, self.images)
        except OSError as error:
            raise UserError(f"--output {self.path}: {error.strerror}; choose another file") from None


def find_label_format(path: Path) -> Callable[[Path, Meta, list[LabelledImage]], None] | None:
    """What writes a file of this name; None for a name of another kind."""
    for ending, save in LABEL_FORMATS.items():
        if path.name.casefold().endswith(ending):
            return save
    return None


def _common_folder(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files; of files on several drives that of the first."""
    folders = [str(path.parent) for path in locate(files)]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return Path(folders[0])


def _save_coco(path: Path, meta: Meta, images: list[LabelledImage]) -> None:
    numbers = {kind: number for number, kind in enumerate(_list_kinds(meta, images), start=1)}
    values: dict[str, Any] = {"info": {"description": f"predictions of {meta.experiment}, to be corrected"}}
    values["categories"] = [{"id": number, "name": kind} for kind, number in numbers.items()]
    values["images"] = []
    values["annotations"] = []
    for image_id, image in enumerate(images, start=1):
        height, width = image.size
        values["images"].append({"id": image_id, "file_name": image.name, "width": width, "height": height})
        for outline in image.outlines:
            left, top = outline.points.min(axis=0).tolist()
            right, bottom = outline.points.max(axis=0).tolist()
            annotation = {
                "id": len(values["annotations"]) + 1,
                "image_id": image_id,
                "category_id": numbers[outline.kind],
                "segmentation": [outline.points.ravel().tolist()],
                "bbox": [left, top, right - left, bottom - top],
                "area": _polygon_area(outline.points),
                "iscrowd": 0,
                "score": outline.probability,
            }
            values["annotations"].append(annotation)
    _write_json(path, values)


def _save_label_studio(path: Path, meta: Meta, images: list[LabelledImage]) -> None:
    """Tasks with predictions, for a label configuration with <PolygonLabels name="label" toName="image">."""
    tasks = []
    for image in images:
        height, width = image.size
        results = []
        for number, outline in enumerate(image.outlines, start=1):
            points = (outline.points * np.array([100 / width, 100 / height])).tolist()
            result = {
                "id": f"outline{number}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": outline.probability,
                "value": {"points": points, "closed": True, "polygonlabels": [outline.kind]},
            }
            results.append(result)
        score = max((outline.probability for outline in image.outlines), default=0.0)
        prediction = {"model_version": meta.experiment, "score": score, "result": results}
        address = f"/data/local-files/?d={quote(image.name)}"
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    _write_json(path, tasks)


def _save_labelme(path: Path, meta: Meta, images: list[LabelledImage]) -> None:
    """A folder with a file for each image, in folders like theirs."""
    taken: set[Path] = set()
    for image in images:
        file = path / PurePath(image.name).with_suffix(".json")
        if file in taken:  # a.png and a.jpg
            file = path / f"{image.name}.json"
        taken.add(file)
        shapes = []
        for outline in image.outlines:
            shape = {
                "label": outline.kind,
                "points": outline.points.astype(float).tolist(),
                "group_id": None,
                "description": f"probability {outline.probability:.3f}",
                "shape_type": "polygon",
                "flags": {},
            }
            shapes.append(shape)
        values = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative_path(image.path, file.parent),
            "imageData": None,
            "imageHeight": image.size[0],
            "imageWidth": image.size[1],
        }
        _write_json(file, values)


def _relative_path(path: Path, folder: Path) -> str:
    """As labelme wants it; on another drive the path itself."""
    try:
        return path_text(PurePath(os.path.relpath(path, os.path.realpath(folder))).as_posix())
    except ValueError:
        return path_text(path)


def _list_kinds(meta: Meta, images: list[LabelledImage]) -> list[str]:
    """Those that the model tells apart, then others that occur."""
    kinds = dict.fromkeys(meta.map.classes)
    for image in images:
        kinds |= dict.fromkeys(outline.kind for outline in image.outlines)
    return list(kinds)


def _polygon_area(points: np.ndarray) -> float:
    after = np.roll(points, -1, axis=0)
    return float(abs((points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]).sum()) / 2)


def _write_json(path: Path, values: Any) -> None:
    write_bytes(path, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))


LABEL_FORMATS = {
    ".coco.json": _save_coco,
    ".label-studio.json": _save_label_studio,
    ".labelme": _save_labelme,
}
