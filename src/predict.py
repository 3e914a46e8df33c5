"""Score images with an exported model: CSV, JSON lines or labels to correct, and pictures with heat maps.

With --jobs or --ray several processes or machines score them in chunks; run the same command again to go on
after an interruption. The model, the images and the output may then be URLs, such as s3://bucket/folder.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

import cv2
from tqdm import tqdm

from defects import cli
from defects.data.images import read_image
from defects.deploy.label_files import LABEL_FORMATS, LabelFile, find_label_format
from defects.deploy.model import ExportedModel, Meta, find_claim, find_note, load_model
from defects.deploy.prediction import (
    Prediction,
    WritePrediction,
    check_roi_masks,
    find_files,
    locate,
    name_pictures,
    predict,
    without_dots,
)
from defects.deploy.regions import draw_overlay
from defects.deploy.scoring_jobs import WRITERS, Scoring, fetch_export, list_images, score_in_chunks
from defects.deploy.stores import StoreError, is_url
from defects.files import write_bytes
from defects.messages import UserError, shorten_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("model", help="an export's folder, or one of the models in it")
    parser.add_argument("paths", nargs="+", help="images, folders of images, globs")
    parser.add_argument(
        "--output",
        help="FILE.csv or FILE.jsonl, or labels to correct: FILE.coco.json, FILE.label-studio.json or the "
        "folder FOLDER.labelme; by default CSV on the console",
    )
    parser.add_argument("--overlays", type=Path, help="folder for pictures with heat maps")
    parser.add_argument("--threshold", type=cli.probability, help="a probability in place of the model's own")
    parser.add_argument(
        "--roi", type=Path, help="folder of masks named like the images, for a model of data.roi.folder"
    )
    parser.add_argument("--batch-size", type=cli.positive, default=8)
    parser.add_argument(
        "--threads",
        type=cli.positive,
        help="of the runtime; default: as many as it likes, or 1 in each process of --jobs and --ray",
    )
    cli.add_engine_options(parser, "score in chunks, in N processes")
    arguments = parser.parse_args()
    if arguments.jobs or arguments.ray is not None or names_url(arguments):
        predict_in_chunks(arguments)
    else:
        predict_here(arguments)


def names_url(arguments: argparse.Namespace) -> bool:
    return any(is_url(location) for location in [arguments.model, arguments.output or "", *arguments.paths])


def predict_in_chunks(arguments: argparse.Namespace) -> None:
    """Score in several processes, or on a cluster; files come and go by URL, too."""
    output = arguments.output
    suffix = Path(output or "").suffix.lower()
    if suffix not in WRITERS or find_label_format(Path(output)):
        raise UserError(
            "--jobs, --ray and URLs need --output FILE.csv or FILE.jsonl: chunks are kept beside it"
        )
    if not is_url(output) and Path(output).is_dir():
        raise UserError(f"--output {output} is a folder: choose another name")
    if arguments.overlays:
        raise UserError("--overlays: pictures are drawn without --jobs, --ray and URLs; leave it out")
    if arguments.roi:
        raise UserError("--roi: masks are read without --jobs, --ray and URLs; leave these out")
    with TemporaryDirectory(prefix="defects_") as folder:
        try:
            path = fetch_export(arguments.model, Path(folder))
            images = list_images(arguments.paths)
        except StoreError as error:
            raise UserError(str(error)) from None
        threads = arguments.threads or 1
        model = load_model(path, threads)
        if model.meta.needs_masks:
            raise UserError(
                f"{model.meta.experiment} needs a mask for each image, which --jobs, --ray and URLs do not "
                "read: leave these out, and name a folder of masks with --roi"
            )
        tell_about(model, arguments.threshold)
        scoring = Scoring(model.path, suffix, arguments.batch_size, threads, arguments.threshold)
        if arguments.ray is not None:
            scoring = scoring.with_files()
        start = partial(cli.start_engine, arguments, cpus=threads)
        begin = time.perf_counter()
        scored = score_in_chunks(scoring, model.meta, images, output, start)
    seconds = time.perf_counter() - begin
    speed = scored.scored_now / seconds
    print(
        f"wrote {output}: {scored.images} images, {scored.scored_now} of them scored now in {seconds:.1f} s "
        f"({speed:.1f} images/s)",
        file=sys.stderr,
    )
    if scored.unread:
        raise UserError(tell_unread(scored.unread, scored.images))


def predict_here(arguments: argparse.Namespace) -> None:
    """Score in this process, and write down each image at once."""
    output = Path(arguments.output) if arguments.output else None
    if output and output.suffix.lower() not in WRITERS and not find_label_format(output):
        endings = ", ".join([*WRITERS, *LABEL_FORMATS])
        raise UserError(f"--output {output}: end it in one of {endings}")
    model = load_model(Path(arguments.model), arguments.threads)
    files = find_files(arguments.paths)
    if arguments.overlays and model.meta.map is None:
        raise UserError(f"--overlays: {model.meta.detector} makes no maps; leave it out")
    check_roi_masks(model.meta, arguments.roi)
    tell_about(model, arguments.threshold)
    pictures = plan_pictures(arguments.overlays, files) if arguments.overlays else None
    unread = []
    unwritten = []  # reasons
    with open_writer(output, model.meta, files) as write:
        predictions = predict(model, files, arguments.batch_size, arguments.threshold, arguments.roi)
        bar = tqdm(predictions, "predicting", len(files), leave=False, disable=None)
        for position, prediction in enumerate(bar):
            write(prediction)
            if prediction.error:
                unread.append(prediction.path)
            elif pictures:
                problem = save_overlay(pictures[position], prediction, model.meta)
                if problem:
                    unwritten.append(problem)
    problems = []
    if unread:
        problems.append(tell_unread(unread, len(files)))
    if unwritten:
        count = f"{len(unwritten)} of {len(files) - len(unread)} overlays"
        problems.append(f"{count} could not be written ({unwritten[0]})")
    if problems:
        raise UserError("; ".join(problems))


def tell_about(model: ExportedModel, threshold: float | None) -> None:
    if note := find_note(model.meta):
        print(note, file=sys.stderr)
    if claim := find_claim(model.meta, model.path.name, threshold):
        print(f"may be claimed: {claim}", file=sys.stderr)


def tell_unread(unread: Sequence[object], count: int) -> str:
    return (
        f"{len(unread)} of {count} files could not be read ({shorten_names(unread)}); the others are scored"
    )


@contextmanager
def open_writer(path: Path | None, meta: Meta, files: list[Path]) -> Iterator[WritePrediction]:
    """What writes each prediction down; labels are written together, once all are there."""
    if path is None or not find_label_format(path):
        with open_output(path) as stream:
            yield WRITERS[path.suffix.lower() if path else ".csv"](stream, meta)
        return
    labels = LabelFile(path, meta, files)
    yield labels.add
    labels.save()
    if labels.unmarked:
        print(
            f"note: {len(labels.unmarked)} defective images have no marked region, and are outlined as a "
            f"whole: {shorten_names(labels.unmarked)}",
            file=sys.stderr,
        )


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """The file, or the console; a file grows line by line, so that it can be read while more is scored."""
    if path is None:
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}; choose another file") from None
    with stream:
        yield stream


def plan_pictures(folder: Path, files: list[Path]) -> list[Path]:
    """Where the picture of each file goes, always below `folder`, which is made.

    Raises UserError if that cannot be, or if a picture would replace one of the files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--overlays {folder}: {error.strerror}; choose another folder") from None
    pictures = [folder / name for name in name_pictures(without_dots(files))]
    targets = locate(pictures)
    outside = [path for path in targets if not path.is_relative_to(folder.resolve())]
    if outside:
        raise UserError(f"--overlays {folder}: a link in it leads to {outside[0].parent}; remove the link")
    replaced = sorted(set(locate(files)) & set(targets))
    if replaced:
        raise UserError(f"--overlays {folder}: a picture would replace {replaced[0]}; choose another folder")
    return pictures


def save_overlay(path: Path, prediction: Prediction, meta: Meta) -> str:
    """Write a PNG; the reason if that fails, since other images are still to be scored."""
    try:
        image = read_image(prediction.path, bits=meta.bits)
        picture = draw_overlay(image, prediction.maps, meta.map, prediction.regions, prediction.inside)
        content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        write_bytes(path, content)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


if __name__ == "__main__":
    cli.run(main)
