"""AITEX as it is downloaded: Defect_images, Mask_images, NODefect_images/<fabric>; or in defect/normal form.

https://www.aitex.es/afid. The strips of 4096x256 pixels are divided into pieces of 1024x256, which are
written once, to `pieces` in data.root. A piece is defective if the mask of its strip marks a pixel of it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.images import decode_colours, read_content
from defects.data.layouts import defect_normal
from defects.data.listing import Listing, MaskNotes, RoleFolder, attach_by_role, make_rows, open_folders
from defects.data.mask_files import read_mask
from defects.data.mask_matching import match_masks
from defects.files import partial, read_json, remove, write_bytes, write_json
from defects.messages import UserError, shorten_names

PIECE_WIDTH = 1024  # pixels
PIECES_FOLDER = "pieces"
STAMP_FILE = ".pieces.json"  # in it: which strips they are of, what was left out
ROLE_FOLDERS = {"normal": "normal_images", "abnormal": "defect_images", "masks": "defect_masks"}


class FabricStrip(NamedTuple):
    path: Path
    folder: str  # below the folder of its role: the fabric of a normal one
    masks: list[Path]
    is_defective: bool


@dataclass
class LeftOut:
    unmarked: list[str] = field(default_factory=list)  # defective strips of which no mask marks anything
    flat: list[str] = field(default_factory=list)  # pieces of one grey level, such as white padding


def list_data(data: DataConfig) -> Listing:
    """Ids are `defect_images/name` and `normal_images/fabric/name`.

    A name ends in `_b<strip>_<piece>` for pieces of defective strips, and `_g<strip>_<piece>` for others.
    """
    root = resolve(data.root)
    if (root / "train").is_dir():
        return defect_normal.list_data(data)
    raw_folders, lines = _divide_strips(root)
    pieces = root / PIECES_FOLDER
    folders = [
        RoleFolder(role, pieces / name, f"{PIECES_FOLDER}/{name}") for role, name in ROLE_FOLDERS.items()
    ]
    by_role = {folder.role: folder for folder in open_folders(folders)}
    tables = {
        "normal": make_rows(data, by_role["normal"].images, pieces, "train", 0),
        "abnormal": make_rows(data, by_role["abnormal"].images, pieces, "train", 1),
    }
    notes = MaskNotes(root)
    images = pd.concat(attach_by_role(data, tables, by_role, notes).values(), ignore_index=True)
    return Listing(images, folders=[*by_role.values(), *raw_folders], notes=notes.lines() + lines)


def _divide_strips(root: Path) -> tuple[list[RoleFolder], list[str]]:
    """Write the pieces unless those of the same files are there; folders and lines for the inventory."""
    folders = _open_raw_folders(root)
    strips, orphans = _list_strips(folders)
    pieces = root / PIECES_FOLDER
    digest = _digest(root, strips)
    stamp = read_json(pieces / STAMP_FILE)
    if stamp is None or stamp.get("digest") != digest:
        print(f"dividing {len(strips)} strips into pieces of {PIECE_WIDTH} pixels in {pieces}")
        try:
            stamp = _write_pieces(strips, pieces, digest)
        except OSError as error:
            raise UserError(
                f"{pieces} cannot be written ({error.strerror}), where strips are divided into pieces: copy "
                f"{root} to where there is room and you may write, and name the copy (data.root)"
            ) from None
    texts = {
        "masks belong to no strip": [path.name for path in orphans],
        "defective strips have no mask that marks anything, and are left out": stamp["unmarked"],
        "pieces of one grey level are left out": stamp["flat"],
    }
    lines = [f"{len(names)} {text}: {shorten_names(names)}" for text, names in texts.items() if names]
    return list(folders.values()), lines


def _write_pieces(strips: list[FabricStrip], pieces: Path, digest: str) -> dict[str, Any]:
    """All pieces in place of earlier ones, and what is stored with them."""
    left_out = LeftOut()
    with partial(pieces) as staging:
        for strip in strips:
            _divide(strip, staging, left_out)
        stamp = {"digest": digest, "unmarked": left_out.unmarked, "flat": left_out.flat}
        write_json(staging / STAMP_FILE, stamp)
        remove(pieces)
        staging.rename(pieces)
    return stamp


def _open_raw_folders(root: Path) -> dict[str, RoleFolder]:
    roles = [("abnormal", "Defect_images"), ("masks", "Mask_images"), ("normal", "NODefect_images")]
    opened = open_folders([RoleFolder(role, _find_folder(root, name), name) for role, name in roles])
    return {folder.role: folder for folder in opened}


def _list_strips(by_role: dict[str, RoleFolder]) -> tuple[list[FabricStrip], list[Path]]:
    """All strips with their masks, and masks of no strip; `by_role`: the folders as downloaded."""
    masks = by_role["masks"].scan.images
    defective = by_role["abnormal"].images
    matches = match_masks([path.name for path in defective], [path.name for path in masks])
    strips = []
    for path, numbers in zip(defective, matches.of_image, strict=True):
        strips.append(FabricStrip(path, "", [masks[number] for number in numbers], is_defective=True))
    normal = by_role["normal"]
    for path in normal.images:
        folder = path.parent.relative_to(normal.path).as_posix()
        strips.append(FabricStrip(path, folder, [], is_defective=False))
    return strips, [masks[number] for number in matches.orphans]


def _find_folder(root: Path, name: str) -> Path:
    """The folder, also where an archive holds one of the same name in it."""
    inner = root / name / name
    return inner if inner.is_dir() else root / name


def _digest(root: Path, strips: list[FabricStrip]) -> str:
    """Of the names and sizes of all strips and masks."""
    files = [path for strip in strips for path in (strip.path, *strip.masks)]
    facts = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in files]
    return hashlib.sha256(json.dumps([PIECE_WIDTH, facts]).encode()).hexdigest()


def _divide(strip: FabricStrip, pieces: Path, left_out: LeftOut) -> None:
    content, header = read_content(strip.path, is_strict=True)
    image = decode_colours(strip.path, content, header)
    mask = np.zeros(image.shape[:2], bool)
    for path in strip.masks:
        part = read_mask(path)
        if part.shape != mask.shape:
            sizes = f"{part.shape[1]}x{part.shape[0]}, its strip {mask.shape[1]}x{mask.shape[0]}"
            raise UserError(f"{path} is {sizes}: correct or remove it")
        mask |= part
    if strip.is_defective and not mask.any():
        left_out.unmarked.append(strip.path.name)
        return
    number = strip.path.stem.partition("_")[0]
    letter = "b" if strip.is_defective else "g"
    for place, columns in enumerate(_piece_columns(image.shape[1])):
        name = f"{strip.path.stem}_{letter}{number}_{place}.png"
        piece = image[:, columns]
        if piece.min() == piece.max():
            left_out.flat.append(name)
        elif mask[:, columns].any():
            _write_png(pieces / ROLE_FOLDERS["abnormal"] / name, piece)
            _write_png(pieces / ROLE_FOLDERS["masks"] / name, mask[:, columns, None] * np.uint8(255))
        else:
            _write_png(pieces / ROLE_FOLDERS["normal"] / strip.folder / name, piece)


def _piece_columns(width: int) -> Iterator[slice]:
    """Columns of each piece; the last one of a width that does not divide evenly overlaps the one before."""
    for start in range(0, width, PIECE_WIDTH):
        start = max(0, min(start, width - PIECE_WIDTH))
        yield slice(start, start + PIECE_WIDTH)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Of RGB or grey [H, W, C]; three equal channels are written as one."""
    is_grey = (pixels == pixels[..., :1]).all()
    stored = pixels[..., 0] if is_grey else pixels[..., ::-1]
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes())
