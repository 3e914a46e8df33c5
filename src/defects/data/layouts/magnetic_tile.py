"""Magnetic tiles as they are downloaded: MT_<kind>/Imgs.

https://github.com/abin24/Magnetic-tile-defect-datasets. Images are .jpg files, their masks .png files of the
same name, MT_Free is normal. A name, exp<setting>_num_<frame>, holds the setting of the camera's exposure and
a running number: photographs of one tile follow each other by some 10 to 90 numbers.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import list_folders
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_empty_masks,
    attach_masks,
    make_rows,
    open_folders,
)
from defects.messages import UserError, shorten_names

PREFIX = "MT_"
NORMAL_FOLDER = "MT_Free"
NAME = re.compile(r"exp\d+_num_(\d+)")
LONGEST_STEP = 100  # frames between two photographs of one tile, at most; few other tiles follow so soon


def list_data(data: DataConfig) -> Listing:
    """Ids are `tile<first frame>/MT_<kind>/<name>`: the photographs of one tile share the first part.

    Raises UserError for names without a running number, and without MT_Free.
    """
    root = resolve(data.root)
    kinds = [path for path in list_folders(root) if path.name.startswith(PREFIX)]
    if NORMAL_FOLDER not in [path.name for path in kinds]:
        raise UserError(
            f"{root} lacks {NORMAL_FOLDER}, the normal images: unpack the data set there, or change data.root"
        )
    folders = []
    for path in kinds:
        role = "normal" if path.name == NORMAL_FOLDER else "abnormal"
        images = path / "Imgs" if (path / "Imgs").is_dir() else path
        folders.append(RoleFolder(role, images, path.name, path.name.removeprefix(PREFIX)))
    opened = open_folders(folders)
    notes = MaskNotes(root)
    tables = []
    for folder in opened:
        label = int(folder.role == "abnormal")
        kind = folder.kind if label else ""
        table = make_rows(data, folder.images, folder.path, "train", label, kind, f"{folder.setting}/")
        if label:
            table = attach_masks(data, table, folder, None, notes)
        else:
            table = attach_empty_masks(table, folder, None, notes)
        tables.append(table)
    images = pd.concat(tables, ignore_index=True)
    tiles = number_tiles(images["image_id"])
    ids = [f"tile{tile}/{image_id}" for tile, image_id in zip(tiles, images["image_id"], strict=True)]
    lines = MaskNotes(root, unmatched=notes.unmatched, united=notes.united).lines()
    lines.append(f"by their names {len(images)} photographs show {len(set(tiles))} tiles")
    return Listing(images.assign(image_id=ids), folders=opened, notes=lines)


def number_tiles(names: Iterable[str]) -> list[int]:
    """For each photograph the running number of the first one that shows the same tile.

    Two tiles that were photographed without a pause count as one: folds then still share no tile.
    """
    names = list(names)
    matches = [NAME.search(Path(name).stem) for name in names]
    unnumbered = [name for name, match in zip(names, matches, strict=True) if match is None]
    if unnumbered:
        raise UserError(
            f"{shorten_names(unnumbered)}: a name such as exp1_num_4727 is needed to tell the tile"
        )
    frames = [int(match[1]) for match in matches]
    first_of = {}
    first = previous = None
    for frame in sorted(set(frames)):
        if previous is None or frame - previous > LONGEST_STEP:
            first = frame
        first_of[frame] = first
        previous = frame
    return [first_of[frame] for frame in frames]
