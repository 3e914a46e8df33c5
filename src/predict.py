"""Score images with an exported model: CSV or JSON lines, and pictures with heat maps."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import cv2
from tqdm import tqdm

from defects import cli
from defects.data.images import read_image
from defects.deploy.image_paths import locate, name_pictures, without_dots
from defects.deploy.model import Meta, find_note, load_model
from defects.deploy.prediction import Prediction, find_files, predict
from defects.deploy.regions import overlay
from defects.deploy.writers import csv_writer, json_writer
from defects.files import write_bytes
from defects.messages import UserError

WRITERS = {".csv": csv_writer, ".jsonl": json_writer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an export's folder, or one of the models in it")
    parser.add_argument("paths", nargs="+", help="images, folders of images, globs")
    parser.add_argument("--output", type=Path, help="FILE.csv or FILE.jsonl; by default CSV on the console")
    parser.add_argument("--overlays", type=Path, help="folder for pictures with heat maps")
    parser.add_argument("--threshold", type=cli.probability, help="a probability in place of the model's own")
    parser.add_argument("--batch-size", type=cli.positive, default=8)
    parser.add_argument("--threads", type=cli.positive, help="default: as many as the runtime likes")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix not in WRITERS:
        raise UserError(f"--output {arguments.output}: end it in {' or '.join(WRITERS)}")
    model, files = load_model(arguments.model, arguments.threads), find_files(arguments.paths)
    if arguments.overlays and model.meta.map is None:
        raise UserError(f"--overlays: {model.meta.detector} makes no maps; leave it out")
    if note := find_note(model.meta):
        print(note, file=sys.stderr)
    pictures = plan_pictures(arguments.overlays, files) if arguments.overlays else None
    broken, lost = 0, []
    with written_to(arguments.output) as stream:
        write = WRITERS[arguments.output.suffix if arguments.output else ".csv"](stream, model.meta)
        found = predict(model, files, arguments.batch_size, arguments.threshold)
        bar = tqdm(found, "predicting", len(files), leave=False, disable=None)
        for number, each in enumerate(bar):
            write(each)
            broken += bool(each.error)
            if pictures and not each.error:
                problem = save_overlay(pictures[number], each, model.meta)
                lost += [problem] if problem else []
    problems = []
    if broken:
        problems.append(f"{broken} of {len(files)} files could not be read; the others are scored")
    if lost:
        problems.append(f"{len(lost)} of {len(files) - broken} overlays could not be written ({lost[0]})")
    if problems:
        raise UserError("; ".join(problems))


@contextmanager
def written_to(path: Path | None) -> Iterator[TextIO]:
    """The file, or the console; a file grows line by line, so that what is known can be read at once."""
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


def save_overlay(path: Path, found: Prediction, meta: Meta) -> str:
    """Write a PNG; the reason if that fails, since other images are still to be scored."""
    try:
        picture = overlay(read_image(found.path, bits=meta.bits), found.maps, meta.map, found.regions)
        content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        write_bytes(path, content)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


if __name__ == "__main__":
    cli.run(main)
