r"""Scores, labels and regions of any images by an exported model, and how they are written down.

Nothing of training is imported. A file name need not be text: of one that is no UTF-8, `\xNN` stands for a
byte wherever the path is written (`path_text`).
"""

import csv
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import TextIO

import numpy as np

from defects.data.folder_scan import list_files_to_score
from defects.data.mask_files import read_mask
from defects.data.roi import find_roi_mask, list_roi_masks, refuse_shared_masks
from defects.deploy.frames import Frame, make_frame, read_frame, stack_frames
from defects.deploy.model import ExportedModel, Meta, Output
from defects.deploy.regions import Region, find_regions
from defects.deploy.stores import StoredImage
from defects.evaluation.display_scales import AT_THRESHOLD, score_probabilities
from defects.messages import UserError

BATCHES_AHEAD = 2  # that are read while one is scored
SURROGATE = re.compile(r"[\ud800-\udfff]")  # stands for a byte that is no UTF-8 (PEP 383: U+DC80 to U+DCFF)
LOOKS_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]")


@dataclass
class Prediction:
    """Of one image: `score`, `probability` and `defect_score` by target, `labels` the targets present.

    A defect score is at least AT_THRESHOLD where its probability reaches the threshold of the target.
    `candidate_regions` are all regions of its maps, whatever the probabilities; `regions` are those of the
    targets present.
    """

    path: Path | StoredImage | None = None  # None: of an image in memory
    score: dict[str, float] = field(default_factory=dict)
    probability: dict[str, float] = field(default_factory=dict)
    defect_score: dict[str, float] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    candidate_regions: list[Region] = field(default_factory=list)
    maps: np.ndarray | None = None  # [K, h, w]
    shape: tuple[int, int] = (0, 0)  # height, width of the image in pixels
    inside: np.ndarray | None = None  # bool [h, w], as the model sees the image: what is judged; None: all
    error: str = ""  # why there is nothing else

    @property
    def verdict(self) -> str:
        """The kinds of defects, joined by `+`; `normal` without any; empty for a file with an error."""
        if self.error:
            return ""
        kinds = [target for target in self.labels if target != "defect"]  # say more than that there is one
        return "+".join(kinds or self.labels) or "normal"


# --- which files -------------------------------------------------------------------------------------------


def find_files(patterns: list[str]) -> list[Path]:
    """Files, all images of folders, and what globs match, in this order, without repetitions.

    Raises UserError for a folder and for a glob without images; a file that does not exist is reported by
    `predict`.
    """
    matches: list[Path] = []
    for pattern in patterns:
        if not pattern:
            raise UserError("one of the paths is empty: leave it out, or set the variable it stands for")
        path = Path(pattern)
        if _is_folder(pattern):
            matches += list_files_to_score(path)
        elif os.path.lexists(path) or not set("*?[") & set(pattern):
            matches.append(path)
        else:
            matches += _match_glob(pattern)
    files: dict[Path, Path] = {}
    for location, path in zip(locate(matches), matches, strict=True):
        files.setdefault(location, path)
    return list(files.values())


def _is_folder(path: str) -> bool:
    """False also where permissions, or the length of the name, forbid to look: pathlib's raises then."""
    return os.path.isdir(path)  # noqa: PTH112


def _match_glob(pattern: str) -> list[Path]:
    """What a glob matches, as a shell would: files of any kind, and folders, which stand for their images."""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib's `**` leaves files out)
    files: list[Path] = []
    listed: set[Path] = set()  # folders, which are listed with all that is below them
    for match in matches:
        path = Path(match)
        if not _is_folder(match):
            files.append(path)
        elif listed.isdisjoint(path.parents):
            listed.add(path)
            with suppress(UserError):  # a folder without images; others may have some
                files += list_files_to_score(path)
    if not files:
        reason = "matches nothing but folders without images" if matches else "matches no file"
        raise UserError(f"{pattern} {reason}: correct it, or name a folder of images")
    return files


def locate(paths: Sequence[Path]) -> list[Path]:
    """What identifies files: absolute paths, without `..` and without links among the folders.

    A link to a file stays a link.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = Path(os.path.realpath(path.parent))
    return [folders[path.parent] / path.name for path in paths]


# --- predictions -------------------------------------------------------------------------------------------


def predict(
    model: ExportedModel,
    files: Sequence[Path | StoredImage],
    batch_size: int,
    threshold: float | None = None,
    roi_masks: Path | None = None,
) -> Iterator[Prediction]:
    """Predictions in the order of `files`; a file that cannot be read has an error and stops nothing.

    `threshold`: a probability in place of those of the model. `roi_masks`: a folder of masks, named like the
    files, of their regions of interest. Raises StoreError where a store of images is lost. Files are read by
    threads while the model runs.
    """
    masks = check_roi_masks(model.meta, roi_masks)
    if masks is not None:
        refuse_shared_masks(masks, (path.as_posix() for path in files), f"--roi {roi_masks}")
    read = partial(_read_with_mask, model.meta, masks, roi_masks)
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor() as pool:
        waiting = (  # a generator: what is far ahead is not read yet
            [(path, pool.submit(read, path)) for path in batch] for batch in batches
        )
        queue = list(islice(waiting, BATCHES_AHEAD))
        while queue:
            queue += list(islice(waiting, 1))
            yield from _predict_batch(model, queue.pop(0), threshold)


def predict_images(
    model: ExportedModel,
    images: Iterable[np.ndarray],
    threshold: float | None = None,
    roi_masks: Sequence[np.ndarray] | None = None,
    batch_size: int = 8,
) -> list[Prediction]:
    """Predictions of images in memory, in their order: uint8 [H, W] grey or [H, W, 3] RGB, of any sizes.

    `threshold`: a probability in place of those of the model. `roi_masks`: bool [H, W] of each, for a model
    that needs them. May be called by several threads at a time with the same model. Raises UserError, before
    anything is scored, for an array that is no such image.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold} is no probability: give a value from 0 to 1")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} scores nothing: give 1 or more")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(
            "predict_images takes a list of images, or an array [images, height, width, 3]; this one has "
            f"the shape {images.shape}: give [image] for a single one"
        )
    images = list(images)
    if roi_masks is not None and len(roi_masks) != len(images):
        raise UserError(f"{len(roi_masks)} masks for {len(images)} images: give one for each")
    masks = [None] * len(images) if roi_masks is None else roi_masks
    frames = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        frames.append(make_frame(image, model.meta, mask, f"image {number}"))
    predictions = []
    for start in range(0, len(frames), batch_size):
        predictions += predict_frames(model, frames[start : start + batch_size], threshold)
    return predictions


def predict_frames(
    model: ExportedModel, frames: Sequence[Frame], threshold: float | None = None
) -> list[Prediction]:
    """Predictions of frames in one run of the model; there may be none."""
    if not frames:
        return []
    output = model(stack_frames(frames, model.meta))
    return [_build_prediction(model.meta, frame, output, row, threshold) for row, frame in enumerate(frames)]


def check_roi_masks(meta: Meta, folder: Path | None) -> dict[str, Path] | None:
    """The masks of regions of interest in a folder, by name; None where the model needs none.

    Raises UserError if it needs them and there is no folder, and the reverse.
    """
    if meta.needs_masks and folder is None:
        raise UserError(
            f"{meta.experiment} judges a part of each image that a mask tells: name a folder of masks, named "
            "like the images, with --roi"
        )
    if not meta.needs_masks and folder is not None:
        raise UserError(f"--roi {folder}: {meta.experiment} needs no masks; leave it out")
    return None if folder is None else list_roi_masks(folder)


def _read_with_mask(
    meta: Meta, masks: dict[str, Path] | None, folder: Path | None, path: Path | StoredImage
) -> Frame:
    if masks is None:
        return read_frame(path, meta)
    mask = read_mask(find_roi_mask(masks, path.as_posix(), str(folder)))
    return read_frame(path, meta, mask)


def _predict_batch(
    model: ExportedModel, batch: list[tuple[Path | StoredImage, Future]], threshold: float | None
) -> Iterator[Prediction]:
    """Predictions of one batch of paths with their frames to come, in one run of the model."""
    frames: dict[int, Frame] = {}  # by position in the batch
    errors: dict[int, str] = {}
    for position, (_, future) in enumerate(batch):
        try:
            frames[position] = future.result()
        except UserError as error:
            errors[position] = str(error)
    predictions = iter(predict_frames(model, list(frames.values()), threshold))
    for position, (path, _) in enumerate(batch):
        if position in errors:
            yield Prediction(path, error=errors[position])
        else:
            yield replace(next(predictions), path=path)


def _build_prediction(
    meta: Meta, frame: Frame, output: Output, row: int, threshold: float | None
) -> Prediction:
    """Of one row of the model's output, for the image of this frame."""
    scores = output.score[row]
    probabilities = output.probability[row]
    maps = None if output.map is None else output.map[row]
    thresholds = [meta.threshold[target] if threshold is None else threshold for target in meta.targets]
    defect_scores = score_probabilities(probabilities.astype(float), np.array(thresholds))
    regions = [] if maps is None else find_regions(maps, frame.shape, meta.map, frame.inside)
    prediction = Prediction(
        score=dict(zip(meta.targets, scores.tolist(), strict=True)),
        probability=dict(zip(meta.targets, probabilities.tolist(), strict=True)),
        defect_score=dict(zip(meta.targets, defect_scores.tolist(), strict=True)),
        candidate_regions=regions,
        maps=maps,
        shape=frame.shape,
        inside=frame.inside,
    )
    return relabel(prediction, dict.fromkeys(meta.targets, AT_THRESHOLD), meta)


def relabel(prediction: Prediction, thresholds: dict[str, float], meta: Meta) -> Prediction:
    """The same scores with the labels and regions of other thresholds, defect scores by target.

    Where the model has mask rules, a class is present if its score reaches the threshold and its mask
    is not empty; the regions are those masks. Else all that is marked counts as soon as anything is present.
    """
    scores = prediction.defect_score
    reached = [target for target in meta.targets if scores[target] >= thresholds[target]]
    if meta.map is None or meta.map.rules is None:
        return replace(prediction, labels=reached, regions=prediction.candidate_regions if reached else [])
    regions = [region for region in prediction.candidate_regions if region.kind in reached]
    kinds = {region.kind for region in regions}
    labels = [target for target in reached if target in kinds or target not in meta.map.classes]
    return replace(prediction, labels=labels, regions=regions)


# --- how they are written down -----------------------------------------------------------------------------

WritePrediction = Callable[[Prediction], None]


def csv_writer(stream: TextIO, meta: Meta) -> WritePrediction:
    """path, label, score, probability, defect_score (of each target, where there are several), boxes, error.

    label: Prediction.verdict; defect_score: 0 to 100, the threshold at 50; boxes: a JSON list of
    [x, y, width, height] in pixels. A line is written out at once.
    """
    endings = [f"_{target}" for target in meta.targets] if len(meta.targets) > 1 else [""]
    columns = [f"{name}{ending}" for name in ("score", "probability", "defect_score") for ending in endings]
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["path", "label", *columns, "boxes", "error"])

    def write(prediction: Prediction) -> None:
        path = path_text(prediction.path)
        if prediction.error:
            figures = [""] * len(columns)
            boxes = ""
        else:
            figures = [
                *prediction.score.values(),
                *prediction.probability.values(),
                *prediction.defect_score.values(),
            ]
            boxes = json.dumps([region[1:5] for region in prediction.regions])
        table.writerow([path, prediction.verdict, *figures, boxes, escape_bytes(prediction.error)])
        stream.flush()

    return write


def json_writer(stream: TextIO, _: Meta) -> WritePrediction:
    """One object a line, as the CSV; boxes with their kind and the map's largest value in them."""

    def write(prediction: Prediction) -> None:
        values = {"path": path_text(prediction.path)}
        if prediction.error:
            values["error"] = escape_bytes(prediction.error)
        else:
            values |= {
                "label": prediction.verdict,
                "score": prediction.score,
                "probability": prediction.probability,
                "defect_score": prediction.defect_score,
                "boxes": [region._asdict() for region in prediction.regions],
            }
        stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        stream.flush()

    return write


def path_text(path: PurePath | StoredImage | str) -> str:
    r"""The path as UTF-8 can hold it: a byte of a name that is no UTF-8 becomes `\xNN`.

    In such a path a backslash is doubled, so that bytes and text differ. All other paths stay
    as they are.
    """
    text = str(path)
    could_be_mistaken = os.sep == "/" and LOOKS_ESCAPED.search(text)
    if not (SURROGATE.search(text) or could_be_mistaken):
        return text
    return escape_bytes(text.replace("\\", "\\\\"))


def escape_bytes(text: str) -> str:
    r"""Text with `\xNN` for each byte that is no UTF-8."""

    def escape(match: re.Match) -> str:
        code = ord(match[0])
        is_byte = 0xDC80 <= code <= 0xDCFF
        return f"\\x{code - 0xDC00:02x}" if is_byte else f"\\u{code:04x}"  # the latter on Windows alone

    return SURROGATE.sub(escape, text)


# --- where their pictures go -------------------------------------------------------------------------------


def without_dots(paths: Sequence[Path]) -> list[Path]:
    """Absolute paths as they were written, with linked folders; those with a `..` are located.

    Different for different files: a path without `..` and links is the file's own.
    """
    absolute = []
    for path, location in zip(paths, locate(paths), strict=True):
        absolute.append(location if ".." in path.parts else path.absolute())
    return absolute


def name_pictures(paths: Sequence[PurePath]) -> list[PurePath]:
    r"""For absolute paths (see `without_dots`) relative ones, all different, with `.png` added.

    They lie below the deepest folder that holds all files. Where there are several drives, `C:` is the folder
    C, `\\server\share` the folders server and share.
    """
    parts = []
    for path in paths:
        drive_folders = re.findall(r"[^\\/:?]+", path.drive)
        parts.append([*drive_folders, *path.parts[1:]])
    common = len(os.path.commonprefix([part[:-1] for part in parts]))
    return [PurePath(*part[common:-1], f"{part[-1]}.png") for part in parts]
