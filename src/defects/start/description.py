"""The data file of a folder, configs/data/<name>.yaml: its name, its settings and its text."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from defects.config import read_config_file
from defects.config_schema import LONGEST_NAME_BYTES, ROOT, resolve
from defects.data.folder_scan import scan_folder
from defects.data.images import read_image
from defects.files import same_text, write_bytes
from defects.messages import UserError
from defects.settings import dump_yaml
from defects.start.contents import Recognised

Size = tuple[int, int]  # height, width in pixels

DATA_FILES = ROOT / "configs" / "data"
USUAL_SIDE = 256  # pixels, of the shorter side of images as detectors see them
LEAST_SIDE = 64
STEP = 32  # backbones reduce images 32-fold
LONG_FROM = 1.5  # ratio of the sides from which images are not scaled to squares
LONGEST_RATIO = 4
SAMPLED_IMAGES = 12  # whose sizes are read
NAME_LETTERS = 60  # of a name made from a folder's
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)),
}
MOST_NAMES = 100  # tried: parts, parts_2, parts_3, ...
HEAD = """\
# yaml-language-server: $schema={schema}
# Written by src/start.py, which takes the data from here from now on: correct what is wrong. docs/data.md
"""
COMMENTS = {
    "image_size": "height, width in pixels that detectors see; smaller is faster and hides small defects",
    "symmetries": "what does not change a label: rotations, dihedral (quarter turns, flips), flips or none",
    "use_test_as": "test: the labelled test images are for a test alone",
    "group_pattern": "its first group names the part that a photograph shows",
    "annotations": "its categories count as one, `defect`; docs/annotations.md",
}


def make_name(folder: Path) -> str:
    """A name of configuration files and folders, made from that of a folder: letters, digits, _ and -."""
    text = same_text(folder.name).casefold()
    name = re.sub(r"[^\w-]+", "_", text)[:NAME_LETTERS].strip("_-")
    while len(name.encode()) > LONGEST_NAME_BYTES // 2:
        name = name[:-1]
    if not name or name in RESERVED:
        name = f"{name}_data".strip("_")
    return name


def check_name(name: str) -> str:
    """A name that a person gave. Raises UserError unless it may be one of files and folders."""
    name = same_text(name)
    if not re.fullmatch(r"\w[\w-]*", name) or len(name.encode()) > LONGEST_NAME_BYTES // 2:
        raise UserError(f"--name {name}: write letters, digits, _ and -, such as {make_name(Path(name))}")
    if name.casefold() in RESERVED:
        raise UserError(f"--name {name}: Windows has no such file: choose another name")
    return name


def choose_data_file(folder: Path, name: str | None, output: Path, data_files: Path = DATA_FILES) -> Path:
    """The data file of this folder: the one that is there, or a new one.

    Raises UserError if `name`, which a person gave, is of another folder.
    """
    if name is not None:
        path = data_files / f"{check_name(name)}.yaml"
        if is_taken(path, folder, output):
            raise UserError(f"--name {name}: {path} or {output / name} is of other data: choose another name")
        return path
    base = make_name(folder.resolve())
    for number in range(1, MOST_NAMES):
        path = data_files / f"{base if number == 1 else f'{base}_{number}'}.yaml"
        if not is_taken(path, folder, output):
            return path
    raise UserError(f"{data_files} holds {base} and {MOST_NAMES} more of that name: choose one with --name")


def is_taken(path: Path, folder: Path, output: Path) -> bool:
    """Whether a data file is of another folder, or its name that of a run."""
    if (output / path.stem / "fold0").exists() or (output / path.stem / "full").exists():
        return True
    if not path.exists():
        return False
    data = read_config_file(path).get("data")
    root = data.get("root") if isinstance(data, dict) else None
    if not isinstance(root, str):
        return True
    return not resolve(root).resolve().is_relative_to(folder.resolve())


def write_data_file(path: Path, recognised: Recognised, image_size: Size, folds: int | None) -> None:
    """`folds` None: as many as a configuration has by default."""
    content = compose_data_file(recognised, image_size, folds, path.parent)
    write_bytes(path, content.encode())


def compose_data_file(recognised: Recognised, image_size: Size, folds: int | None, place: Path) -> str:
    """The text of a data file in the folder `place`."""
    root = recognised.root.resolve()
    if root.is_relative_to(ROOT):
        root = root.relative_to(ROOT)
    height, width = image_size
    symmetries = "dihedral" if height == width else "flips"
    data: dict[str, Any] = {"source": recognised.settings["data"]["source"], "root": str(root)}
    data |= {key: value for key, value in recognised.settings["data"].items() if key != "source"}
    data |= {"image_size": list(image_size), "symmetries": symmetries}
    split = dict(recognised.settings.get("split", {}))
    if folds is not None:
        split["folds"] = folds
    is_among_configs = place.resolve().is_relative_to(ROOT / "configs")
    schema = "../schema.json" if is_among_configs else (ROOT / "configs" / "schema.json").as_posix()
    lines = [HEAD.format(schema=schema).rstrip(), "data:", *compose_lines(data)]
    if split:
        lines += ["split:", *compose_lines(split)]
    return "\n".join(lines) + "\n"


def compose_lines(settings: dict[str, Any]) -> Iterable[str]:
    """`  key: value   # comment`"""
    for key, value in settings.items():
        line = f"  {key}: {dump_yaml(value, in_one_line=True)}"
        yield f"{line}  # {COMMENTS[key]}" if key in COMMENTS else line


def choose_image_size(root: Path) -> Size:
    """Height and width for detectors, by those of some images below `root`.

    Squares of USUAL_SIDE at most. Where nearly all images are much longer than wide, or wider than long, they
    keep about their proportions.
    """
    files = scan_folder(root).images
    positions = np.linspace(0, len(files) - 1, min(len(files), SAMPLED_IMAGES)).astype(int)
    sizes = []
    for position in dict.fromkeys(positions.tolist()):
        try:
            sizes.append(read_image(files[position]).shape[:2])
        except UserError:
            continue  # src/prepare.py names it
    if not sizes:
        return USUAL_SIDE, USUAL_SIDE
    height, width = np.median(sizes, axis=0)
    short = round_side(min(height, width, USUAL_SIDE))
    ratios = [height / width for height, width in sizes]
    lowest, highest = np.quantile(ratios, [0.1, 0.9])
    if lowest < LONG_FROM and highest > 1 / LONG_FROM:
        return short, short
    ratio = float(np.median(ratios))
    long = round_side(short * min(max(ratio, 1 / ratio), LONGEST_RATIO))
    return (long, short) if ratio > 1 else (short, long)


def round_side(pixels: float) -> int:
    """A multiple of STEP, LEAST_SIDE or more."""
    return max(LEAST_SIDE, round(pixels / STEP) * STEP)


def content_sha256(path: Path) -> str | None:
    """None without a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
