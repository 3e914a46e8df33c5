"""Very many images in chunks: several processes or machines score them, and the results are joined in order.

The command that was started writes all files: `OUTPUT.chunks/` holds the results of every chunk that is done,
and job.json, which says what they are of. A chunk file begins with a line of JSON that tells the SHA-256 of
what follows. Chunks do not depend on the number of processes, so neither do the results.
"""

import atexit
import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from defects.deploy import stores
from defects.deploy.model import META, MODEL_FILES, RUNTIMES, ExportedModel, Meta, list_parts, load_model
from defects.deploy.prediction import WritePrediction, csv_writer, find_files, json_writer, path_text, predict
from defects.deploy.stores import StoredImage, StoreError
from defects.engines import Engine, MakeWorker
from defects.files import sha256
from defects.messages import UserError, shorten_names

CHUNK_IMAGES = 128  # rounded up to whole batches: few enough to be lost, and many beside the cost of a file
JOB = "job.json"
CHUNK_SUFFIX = ".chunk"
FILES_AT_ONCE = 32  # that are read by threads: a store far away takes its time for each
VERSION = 1  # of these files
WRITERS: dict[str, Callable[[TextIO, Meta], WritePrediction]] = {".csv": csv_writer, ".jsonl": json_writer}


class Chunk(NamedTuple):
    """Images that are scored by one process, and written down as one file."""

    number: int
    images: tuple[str, ...]

    def __str__(self) -> str:
        return f"chunk {self.number} ({shorten_names(self.images, most=1)})"


class ChunkScores(NamedTuple):
    """Lines of the output, and which images have an error in it."""

    content: bytes
    unread: list[str]


@dataclass(frozen=True)
class Scoring:
    """What every process is told. `model_files`: for machines that may not have the model, its files."""

    model: Path  # one of MODEL_FILES in an export
    suffix: str  # of the output
    batch_size: int
    threads: int
    threshold: float | None = None
    model_files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def with_files(self) -> "Scoring":
        """The same, with the content of the model's files."""
        names = [META, *list_parts(self.model.name)]
        content = {name: (self.model.parent / name).read_bytes() for name in names}
        return replace(self, model_files=content)


# --- in every process --------------------------------------------------------------------------------------


def make_scorer(scoring: Scoring) -> Callable[[Chunk], ChunkScores]:
    """A function that scores chunks, with its own copy of the model."""
    if not scoring.model_files:
        return partial(score_chunk, load_model(scoring.model, scoring.threads), scoring)
    folder = tempfile.TemporaryDirectory(prefix="defects_", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)  # runtimes read from it as long as they are used
    for name, content in scoring.model_files.items():
        (Path(folder.name) / name).write_bytes(content)
    model = load_model(Path(folder.name) / scoring.model.name, scoring.threads)
    return partial(score_chunk, model, scoring)


def score_chunk(model: ExportedModel, scoring: Scoring, chunk: Chunk) -> ChunkScores:
    """Raises StoreError where a store of images is lost; an image with an error of its own is a line."""
    stream = io.StringIO()
    write = WRITERS[scoring.suffix](stream, model.meta)
    stream.seek(0)
    stream.truncate()  # the header comes once
    unread = []
    images = [StoredImage(location) for location in chunk.images]
    for prediction in predict(model, images, scoring.batch_size, scoring.threshold):
        write(prediction)
        if prediction.error:
            unread.append(path_text(prediction.path))
    return ChunkScores(stream.getvalue().encode("utf-8"), unread)


# --- chunks on disk ----------------------------------------------------------------------------------------


class ChunkFolder:
    """`OUTPUT.chunks`: the results of those chunks of one job that are done."""

    def __init__(self, output: str, job: dict[str, Any]):
        self.location = f"{output}.chunks"
        self.job = job
        self.key = hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]

    def begin(self) -> None:
        """Raises UserError if the folder holds results of another job."""
        location = stores.join(self.location, JOB)
        try:
            earlier = json.loads(stores.read_bytes(location))
        except FileNotFoundError:
            self._write_job()
            return
        except ValueError:
            raise UserError(f"{location} is damaged: delete {self.location}, then run this again") from None
        if not isinstance(earlier, dict):
            earlier = {}
        different = [name for name in self.job if earlier.get(name) != self.job[name]]
        if different and not self._list_chunks():
            self._write_job()
        elif different:
            changes = [f"{name} was {earlier.get(name)}, is {self.job[name]}" for name in different]
            raise UserError(
                f"{self.location} holds results of another command ({'; '.join(changes)}): repeat that one, "
                "name another --output, or delete the folder"
            )

    @contextmanager
    def kept_if_begun(self) -> Iterator[None]:
        """Nothing stays of a command that fails before a chunk is done."""
        try:
            yield
        finally:
            with suppress(StoreError):
                if not self._list_chunks():
                    self.remove()

    def list_done(self) -> list[int]:
        """Numbers of the chunks that are there unharmed."""
        stems = [name.removesuffix(CHUNK_SUFFIX) for name in self._list_chunks()]
        numbers = sorted(int(stem) for stem in stems if stem.isdecimal())
        return [number for number, scores in self._read_many(numbers) if scores is not None]

    def write(self, number: int, scores: ChunkScores) -> None:
        record = {"job": self.key, "unread": scores.unread, "sha256": _digest(scores.content)}
        content = json.dumps(record).encode() + b"\n" + scores.content
        stores.write_whole(self._locate(number), content)

    def read_all(self, count: int) -> Iterator[ChunkScores]:
        """In order. Raises UserError where one of `count` is not there, or harmed."""
        for number, scores in self._read_many(range(count)):
            if scores is None:
                raise UserError(f"{self._locate(number)} is missing or damaged: run the same command again")
            yield scores

    def remove(self) -> None:
        stores.remove_files(self.location, [*self._list_chunks(), JOB])

    def _list_chunks(self) -> list[str]:
        return [name for name in stores.list_names(self.location) if name.endswith(CHUNK_SUFFIX)]

    def _write_job(self) -> None:
        content = json.dumps(self.job, indent=2) + "\n"
        stores.write_whole(stores.join(self.location, JOB), content.encode())

    def _locate(self, number: int) -> str:
        return stores.join(self.location, f"{number:06d}{CHUNK_SUFFIX}")

    def _read(self, number: int) -> ChunkScores | None:
        """None for a file that is missing, cut short or otherwise harmed, or of another job."""
        try:
            first, _, content = stores.read_bytes(self._locate(number)).partition(b"\n")
            record = json.loads(first)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("job") != self.key:
            return None
        if record.get("sha256") != _digest(content):
            return None
        return ChunkScores(content, record["unread"])

    def _read_many(self, numbers: Iterable[int]) -> Iterator[tuple[int, ChunkScores | None]]:
        numbers = list(numbers)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(numbers), FILES_AT_ONCE):
                part = numbers[start : start + FILES_AT_ONCE]
                yield from zip(part, pool.map(self._read, part), strict=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- the command -------------------------------------------------------------------------------------------


class Scored(NamedTuple):
    """What became of a job."""

    images: int
    scored_now: int  # the others were there already
    unread: list[str]


def list_images(patterns: list[str]) -> list[str]:
    """As find_files, of paths and URLs, in their order."""
    images: list[str] = []
    for are_urls, group in groupby(patterns, stores.is_url):
        if are_urls:
            for url in group:
                images += stores.find_images(url)
        else:
            images += [str(path) for path in find_files(list(group))]
    return list(dict.fromkeys(images))


def fetch_export(location: str, folder: Path) -> Path:
    """The path of a model for load_model; what lies behind a URL is copied to `folder` first.

    Raises UserError where no export is there.
    """
    if not stores.is_url(location):
        return Path(location)
    source, name = stores.split(location)
    if name not in MODEL_FILES:
        source = location
    names = set(stores.list_names(source))
    if META not in names:
        raise UserError(f"{source} holds no {META}: name an export's folder, which src/export.py writes")
    models = [name] if name in MODEL_FILES else [model for model in MODEL_FILES if model in names]
    runnable = [model for model in models if find_spec(RUNTIMES[Path(model).suffix])]
    model = (runnable or models or [MODEL_FILES[0]])[0]
    for part in [META, *list_parts(model)]:
        if part in names:
            (folder / part).write_bytes(stores.read_bytes(stores.join(source, part)))
    return folder / model


def score_in_chunks(
    scoring: Scoring, meta: Meta, images: list[str], output: str, start_engine: Callable[[MakeWorker], Engine]
) -> Scored:
    """Write `output`; chunks that an interrupted command has done are not scored again.

    Raises UserError if another command writes there, if the chunks are of another job, and where a store is
    lost: what is done stays.
    """
    chunks = divide(images, scoring.batch_size)
    folder = ChunkFolder(output, describe_job(scoring, images))
    try:
        with stores.owned(folder.location), folder.kept_if_begun():
            folder.begin()
            done = set(folder.list_done())
            waiting = [chunk for chunk in chunks if chunk.number not in done]
            _score(scoring, waiting, folder, start_engine, len(images))
            unread = _join(folder, len(chunks), output, scoring.suffix, meta)
            folder.remove()
    except StoreError as error:
        raise UserError(f"{error}; the chunks that are done stay: run the same command again") from None
    return Scored(len(images), sum(len(chunk.images) for chunk in waiting), unread)


def divide(images: list[str], batch_size: int) -> list[Chunk]:
    """Into chunks of whole batches, whatever scores them."""
    size = math.ceil(CHUNK_IMAGES / batch_size) * batch_size
    starts = range(0, len(images), size)
    return [Chunk(number, tuple(images[start : start + size])) for number, start in enumerate(starts)]


def describe_job(scoring: Scoring, images: list[str]) -> dict[str, Any]:
    """All that the results depend on."""
    files = "\n".join(
        f"{name} {sha256(scoring.model.parent / name)}" for name in list_parts(scoring.model.name)
    )
    meta = sha256(scoring.model.parent / META)
    return {
        "model": f"{scoring.model.name} {_digest(f'{files} {meta}'.encode())[:16]}",
        "images": f"{len(images)} with names {_digest(chr(10).join(map(path_text, images)).encode())[:16]}",
        "threshold": scoring.threshold,
        "batch size": scoring.batch_size,
        "threads": scoring.threads,
        "version": VERSION,
    }


def _score(
    scoring: Scoring,
    chunks: list[Chunk],
    folder: ChunkFolder,
    start_engine: Callable[[MakeWorker], Engine],
    total: int,
) -> None:
    if not chunks:
        return
    count = sum(len(chunk.images) for chunk in chunks)
    with (
        start_engine(partial(make_scorer, scoring)) as engine,
        tqdm(total=total, initial=total - count, desc="predicting", leave=False, disable=None) as bar,
    ):
        for chunk in chunks:
            engine.submit(chunk)
        for chunk, scores in engine.results():
            folder.write(chunk.number, scores)
            bar.update(len(chunk.images))


def _join(folder: ChunkFolder, count: int, output: str, suffix: str, meta: Meta) -> list[str]:
    """Write the output from all chunks, in the order of the images; returns the images with errors."""
    header = io.StringIO()
    WRITERS[suffix](header, meta)
    unread = []
    with (
        tempfile.TemporaryDirectory(prefix="defects_") as scratch,
        stores.written_from_file(output, Path(scratch)) as path,
        path.open("wb") as stream,
    ):
        stream.write(header.getvalue().encode("utf-8"))
        for scores in folder.read_all(count):
            stream.write(scores.content)
            unread += scores.unread
    return unread
