"""Scores, labels and regions of any images, by an exported model; nothing of training is imported."""

import glob
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from defects.data.folder_scan import list_files_to_score
from defects.data.images import read_image_and_shape
from defects.deploy.image_paths import locate
from defects.deploy.model import Meta, Model
from defects.deploy.regions import Region, find_regions
from defects.evaluation.display_scales import AT_THRESHOLD, score_probabilities
from defects.messages import UserError

AHEAD = 2  # batches that are read while one is scored


@dataclass
class Prediction:
    """Of one image: `score`, `probability` and `defect_score` by target, `labels` the targets present.

    A defect score is at least AT_THRESHOLD where its probability reaches the threshold of the target.
    `marked` are the regions of its maps, whatever the probabilities; `regions` those that count.
    """

    path: Path
    score: dict[str, float] = field(default_factory=dict)
    probability: dict[str, float] = field(default_factory=dict)
    defect_score: dict[str, float] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    marked: list[Region] = field(default_factory=list)
    maps: np.ndarray | None = None  # [K, h, w]
    shape: tuple[int, int] = (0, 0)  # height, width of the image in pixels
    error: str = ""  # why there is nothing else


class Frame(NamedTuple):
    """An image as the model sees it, and the (height, width) it had."""

    image: np.ndarray
    shape: tuple[int, int]


def find_files(patterns: list[str]) -> list[Path]:
    """Files, all images of folders, and what globs match, in this order, each once.

    Raises UserError for a folder and for a glob without images; a file that does not exist is reported by
    `predict`.
    """
    named: list[Path] = []
    for pattern in patterns:
        if not pattern:
            raise UserError("one of the paths is empty: leave it out, or set the variable it stands for")
        path = Path(pattern)
        if _is_folder(pattern):
            named += list_files_to_score(path)
        elif os.path.lexists(path) or not set("*?[") & set(pattern):
            named.append(path)
        else:
            named += _match(pattern)
    found: dict[Path, Path] = {}
    for place, path in zip(locate(named), named, strict=True):
        found.setdefault(place, path)
    return list(found.values())


def _is_folder(path: str) -> bool:
    """False also where permissions, or the length of the name, forbid to look: pathlib's raises then."""
    return os.path.isdir(path)  # noqa: PTH112


def _match(pattern: str) -> list[Path]:
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


def predict(
    model: Model, files: list[Path], batch_size: int, threshold: float | None = None
) -> Iterator[Prediction]:
    """Predictions in the order of `files`; a file that cannot be read has an error and stops nothing.

    `threshold`: a probability in place of those of the model. Files are read by threads while the model runs.
    """
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor() as pool:
        waiting = (  # a generator: what is far ahead is not read yet
            [(path, pool.submit(read_frame, path, model.meta)) for path in batch] for batch in batches
        )
        queue = list(islice(waiting, AHEAD))
        while queue:
            queue += list(islice(waiting, 1))
            yield from _score(model, queue.pop(0), threshold)


def read_frame(path: Path, meta: Meta) -> Frame:
    """Raises UserError for what is no image, damaged, or a pipe or device: reading that might never end."""
    with suppress(OSError):  # reading it says what is wrong
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError(f"{path} is no plain file: name an image")
    return Frame(*read_image_and_shape(path, meta.image_size, meta.bits, is_strict=True))


def predict_frames(
    model: Model, paths: list[Path], frames: list[Frame], threshold: float | None
) -> Iterator[Prediction]:
    found = model(np.stack([frame.image for frame in frames]))
    for row, (path, frame) in enumerate(zip(paths, frames, strict=True)):
        maps = None if found.map is None else found.map[row]
        yield _prediction(model.meta, path, found.score[row], found.probability[row], maps, frame, threshold)


def _score(model: Model, batch: list[tuple[Path, Future]], threshold: float | None) -> Iterator[Prediction]:
    paths, frames, errors = [], [], []
    for path, future in batch:
        try:
            frames.append(future.result())
            paths.append(path)
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    scored = predict_frames(model, paths, frames, threshold) if frames else iter(())
    for (path, _), error in zip(batch, errors, strict=True):
        yield Prediction(path, error=error) if error else next(scored)


def _prediction(
    meta: Meta,
    path: Path,
    scores: np.ndarray,
    probabilities: np.ndarray,
    maps: np.ndarray | None,
    frame: Frame,
    threshold: float | None,
) -> Prediction:
    thresholds = [meta.threshold[target] if threshold is None else threshold for target in meta.targets]
    defect_scores = score_probabilities(probabilities.astype(float), np.array(thresholds))
    found = Prediction(
        path,
        score=dict(zip(meta.targets, scores.tolist(), strict=True)),
        probability=dict(zip(meta.targets, probabilities.tolist(), strict=True)),
        defect_score=dict(zip(meta.targets, defect_scores.tolist(), strict=True)),
        marked=[] if maps is None else find_regions(maps, frame.shape, meta.map),
        maps=maps,
        shape=frame.shape,
    )
    return relabel(found, dict.fromkeys(meta.targets, AT_THRESHOLD), meta)


def relabel(found: Prediction, thresholds: dict[str, float], meta: Meta) -> Prediction:
    """The same scores with the labels and regions of other thresholds, defect scores by target.

    Where the model has mask rules, a class is present if its score reaches the threshold and its mask
    is not empty; the regions are those masks. Else all that is marked counts as soon as anything is present.
    """
    reached = [target for target in meta.targets if found.defect_score[target] >= thresholds[target]]
    if meta.map is None or meta.map.rules is None:
        return replace(found, labels=reached, regions=found.marked if reached else [])
    regions = [region for region in found.marked if region.kind in reached]
    kinds = {region.kind for region in regions}
    labels = [target for target in reached if target in kinds or target not in meta.map.classes]
    return replace(found, labels=labels, regions=regions)
