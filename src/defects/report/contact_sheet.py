"""A page of image groups, to see at a glance whether grouped photographs show the same object."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from defects.data.images import read_image, resize
from defects.writing import write_bytes

TILE = 150  # pixels: the square a picture is fitted into
CAPTION = 18  # pixels under it, one line of text
COLUMNS = 10  # pictures per row; larger groups say how many are left out
BLACK, GREY, RED = (0, 0, 0), (200, 200, 200), (200, 0, 0)


def draw_groups(
    paths: Sequence[Path],
    labels: Sequence,
    groups: Sequence,
    output: Path,
    max_groups: int = 40,
    bits: int | None = None,
) -> None:
    """Write a PNG with a row per group of two or more images: label and name under each picture.

    Groups with different labels come first, framed red (missing labels agree with every label). Half of
    the other rows, up to `max_groups`, are the largest groups, half an even sample of the rest.
    """
    labels, members = list(labels), _members(pd.factorize(np.asarray(groups))[0])
    contradicting = [group for group in members if _contradict([labels[k] for k in group])]
    others = [group for group in members if not _contradict([labels[k] for k in group])]
    chosen = contradicting[:max_groups] + _choose(others, max(0, max_groups - len(contradicting)))
    rows = [_row([paths[k] for k in group], [labels[k] for k in group], bits) for group in chosen]
    title = f"{len(members)} groups of {len(paths)} images have two or more members, {len(chosen)} shown"
    width = max([row.shape[1] for row in rows], default=5 * TILE)
    page = [_text(title, width), *(_widen(row, width) for row in rows)]
    _, png = cv2.imencode(".png", np.vstack(page)[..., ::-1])
    write_bytes(output, png.tobytes())


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


def _row(paths: list[Path], labels: list, bits: int | None) -> np.ndarray:
    tiles = [_tile(path, label, bits) for path, label in zip(paths[:COLUMNS], labels, strict=False)]
    row = np.hstack(tiles)
    if len(paths) > COLUMNS:
        more = _text(f"+{len(paths) - COLUMNS}", TILE // 3)
        row = np.hstack([row, np.pad(more, ((TILE, 0), (0, 0), (0, 0)), constant_values=255)])
    return cv2.copyMakeBorder(
        row, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=RED if _contradict(labels) else GREY
    )


def _contradict(labels: list) -> bool:
    return len({str(label) for label in labels if pd.notna(label)}) > 1


def _tile(path: Path, label: object, bits: int | None) -> np.ndarray:
    """uint8 [TILE + CAPTION, TILE, 3]: the picture at its aspect ratio, over its name and label."""
    image = read_image(path, bits=bits)
    scale = (TILE - 4) / max(image.shape[:2])
    small = resize(image, tuple(max(1, round(side * scale)) for side in image.shape[:2]))
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    caption = f"{label}  {Path(path).stem}" if pd.notna(label) else Path(path).stem
    return np.vstack([tile, _text(caption, TILE)])


def _text(text: str, width: int) -> np.ndarray:
    """uint8 [CAPTION, width, 3]: one black line on white, cut where it does not fit."""
    line = np.full((CAPTION, width, 3), 255, np.uint8)
    return cv2.putText(line, text, (2, CAPTION - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, BLACK, 1, cv2.LINE_AA)


def _widen(row: np.ndarray, width: int) -> np.ndarray:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
