"""A page of image groups, to see at a glance whether grouped photographs show the same object."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from defects.data.images import read_image

TILE = 150  # pixels: the square a picture is fitted into
CAPTION = 18  # pixels under it, one line of text
COLUMNS = 10  # pictures per row; larger groups say how many are left out
BLACK, GREY, RED = (0, 0, 0), (200, 200, 200), (200, 0, 0)


def draw_groups(
    paths: Sequence[Path], labels: Sequence, groups: Sequence[int], output: Path, max_groups: int = 40
) -> None:
    """Write a PNG with a row per group of two or more images: name and label under each picture.

    The larger half of the `max_groups` rows are the largest groups, the others an even sample of the rest.
    Groups with different labels are framed red (missing labels agree with every label).
    """
    labels, members = list(labels), _members(np.asarray(groups))
    chosen = _choose(members, max_groups)
    rows = [_row([paths[k] for k in group], [labels[k] for k in group]) for group in chosen]
    title = f"{len(members)} groups of {len(paths)} images have two or more members, {len(chosen)} shown"
    width = max([row.shape[1] for row in rows], default=5 * TILE)
    page = [_text(title, width), *(_widen(row, width) for row in rows)]
    output.parent.mkdir(parents=True, exist_ok=True)
    _, png = cv2.imencode(".png", np.vstack(page)[..., ::-1])
    output.write_bytes(png.tobytes())  # not imwrite: on Windows it cannot write names outside the code page


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Positions of the images of each group of two or more, largest group first."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=len, reverse=True)


def _choose(members: list[np.ndarray], count: int) -> list[np.ndarray]:
    largest = min(len(members), (count + 1) // 2)
    rest = members[largest:]
    even = np.linspace(0, len(rest) - 1, min(count - largest, len(rest))).astype(int)
    return members[:largest] + [rest[k] for k in even]


def _row(paths: list[Path], labels: list) -> np.ndarray:
    tiles = [_tile(path, label) for path, label in zip(paths[:COLUMNS], labels, strict=False)]
    row = np.hstack(tiles)
    if len(paths) > COLUMNS:
        more = _text(f"+{len(paths) - COLUMNS}", TILE // 3)
        row = np.hstack([row, np.pad(more, ((TILE, 0), (0, 0), (0, 0)), constant_values=255)])
    contradiction = len({str(label) for label in labels if pd.notna(label)}) > 1
    return cv2.copyMakeBorder(row, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=RED if contradiction else GREY)


def _tile(path: Path, label: object) -> np.ndarray:
    """uint8 [TILE + CAPTION, TILE, 3]: the picture at its aspect ratio, over its name and label."""
    image = read_image(path)
    scale = (TILE - 4) / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    caption = f"{Path(path).stem}  {label}" if pd.notna(label) else Path(path).stem
    return np.vstack([tile, _text(caption, TILE)])


def _text(text: str, width: int) -> np.ndarray:
    """uint8 [CAPTION, width, 3]: one black line on white, cut where it does not fit."""
    line = np.full((CAPTION, width, 3), 255, np.uint8)
    return cv2.putText(line, text, (2, CAPTION - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, BLACK, 1, cv2.LINE_AA)


def _widen(row: np.ndarray, width: int) -> np.ndarray:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
