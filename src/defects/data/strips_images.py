"""Generated steel strips in the Severstal layout: brushed steel, four defect classes, several per image.

Lengths are those of a strip 256 px high; other heights scale them. Brightness is in grey levels.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from tqdm.contrib.concurrent import thread_map

from defects.data import rle
from defects.data.generated import new_data_set
from defects.data.rle import COLUMNS, all_pairs, write_rle_table

CLASSES = ["1", "2", "3", "4"]
# How often each set of classes occurs among the 12,568 labelled images of the competition.
LABEL_SETS = {
    "": 5902,
    "3": 4759,
    "1": 769,
    "4": 516,
    "34": 284,
    "2": 195,
    "13": 91,
    "12": 35,
    "23": 14,
    "123": 2,
    "24": 1,
}
HEIGHT = 256  # px, of the strips that the lengths below are stated for
DARKEST = 20  # grey levels of steel, far above those of the black border
BORDER_SHARE = 0.2  # of the strips, as at the ends of a coil
STAMP_SHARE = 0.05  # of the strips that are in the set once
TWIN_EVERY = 80  # one pair of duplicates for so many images
QUALITY = 88  # of the JPEG files

Field = np.ndarray  # float32 [H, W]
Mask = np.ndarray  # uint8 [H, W], 0 or 1


class Strip(NamedTuple):
    """What one file shows: strips with the same `key` and `classes` differ in nothing but the time stamp."""

    name: str
    key: tuple[int, ...]
    classes: str
    stamp: int | None = None  # the number in the box
    overlooked: bool = False  # the annotator saw no defect


class Canvas(NamedTuple):
    """The steel that a defect is drawn on."""

    rng: Generator
    shape: tuple[int, int]
    span: tuple[int, int]  # columns without a black border
    scale: float  # px per px of a strip 256 px high

    def place(self, margin: float = 0) -> tuple[float, float]:
        """A random (x, y) on the steel, `margin` px from its left and right end where there is room."""
        low, high = self.span
        margin = min(margin, (high - low) / 3)
        return self.rng.uniform(low + margin, high - margin), self.rng.uniform(0.06, 0.94) * self.shape[0]


# --- steel -----------------------------------------------------------------------------------------------


def _noise(rng: Generator, shape: tuple[int, int], down: float, across: float) -> Field:
    """Noise that changes over about `down` and `across` px, unit deviation before it is enlarged."""
    height, width = shape
    coarse = max(2, round(height / down)), max(2, round(width / across))
    return cv2.resize(rng.standard_normal(coarse, np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _steel(rng: Generator, shape: tuple[int, int], scale: float) -> Field:
    """Brushed rolled steel: fine grain, brushing along or across the strip, slow changes of brightness."""
    horizontal = rng.random() < 0.7
    fine, long, endless = (1, 24 * scale), (2, 160 * scale), (3 * scale, 900 * scale)
    contrasts = rng.uniform(2.5, 5), rng.uniform(1.5, 4), rng.uniform(1, 4)
    steel = rng.standard_normal(shape, np.float32) * rng.uniform(2, 4)
    for (short_side, long_side), contrast in zip((fine, long, endless), contrasts, strict=True):
        sides = (short_side, long_side) if horizontal else (long_side, short_side)
        steel += contrast * _noise(rng, shape, *sides)
    steel += rng.uniform(4, 14) * _noise(rng, shape, 200 * scale, 400 * scale)
    return steel + rng.uniform(65, 135)


def _border(rng: Generator, shape: tuple[int, int], scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """bool [H, W] of the black part beside the coil's end, and the columns that are steel in every row."""
    height, width = shape
    if rng.random() >= BORDER_SHARE:
        return np.zeros(shape, bool), (0, width)
    edge = rng.uniform(0.05, 0.6) * width
    rows = np.arange(height) / height - 0.5
    wave = np.sin(rows * rng.uniform(2, 12) + rng.uniform(0, 6))
    edges = edge + rows * rng.uniform(-16, 16) * scale + wave * rng.uniform(0, 4) * scale
    black = np.arange(width) < edges[:, None]
    steel = int(edges.max()) + 2
    return (black, (steel, width)) if rng.random() < 0.5 else (black[:, ::-1], (0, width - steel))


# --- defects: each returns the change in grey levels and the pixels that an annotator would mark ---------


def _pits(canvas: Canvas) -> tuple[Field, Mask]:
    """Class 1: many small dark pits with a bright rim, scattered around one place."""
    rng, scale = canvas.rng, canvas.scale
    drawn = np.zeros(canvas.shape, np.uint8)
    (middle, _), spread = canvas.place(), rng.uniform(60, 260) * scale
    count = rng.integers(14, 60)
    x, y = rng.normal(middle, spread, count), rng.uniform(0.03, 0.97, count) * canvas.shape[0]
    radii = np.maximum(rng.gamma(4, 0.75, (count, 2)) * scale, 0.7)
    for centre, axes, angle in zip(zip(x, y, strict=True), radii, rng.uniform(0, 180, count), strict=True):
        cv2.ellipse(drawn, (centre, 2 * axes, angle), 1, cv2.FILLED)
    pit, rim = _soft(drawn, 0.8 * scale), _soft(drawn, 2.2 * scale)
    return rng.uniform(18, 30) * rim - rng.uniform(55, 85) * pit, _grown(drawn, 2 * scale)


def _cracks(canvas: Canvas) -> tuple[Field, Mask]:
    """Class 2: one to three thin, dark, nearly vertical strokes."""
    rng, scale = canvas.rng, canvas.scale
    drawn = np.zeros(canvas.shape, np.uint8)
    for _ in range(rng.integers(1, 4)):
        (x, y), length = canvas.place(12 * scale), rng.uniform(25, 110) * scale
        steps = np.linspace(-0.5, 0.5, 9)
        bend = np.cumsum(rng.normal(0, 1.3 * scale, 9))
        _stroke(drawn, x + bend - bend.mean(), y + steps * length, rng.uniform(1, 2.4) * scale)
    return -rng.uniform(40, 70) * _soft(drawn, 0.8 * scale), _grown(drawn, 3 * scale)


def _scratches(canvas: Canvas) -> tuple[Field, Mask]:
    """Class 3: one to six long streaks in one direction, bright or dark, now and then interrupted."""
    rng, scale, (low, high) = canvas.rng, canvas.scale, canvas.span
    drawn = np.zeros(canvas.shape, np.uint8)
    angle = np.deg2rad(rng.normal(0, 2) if rng.random() < 0.55 else rng.uniform(60, 120))
    longest = min(0.9 * (high - low), 900 * scale) if abs(angle) < 0.5 else 240 * scale
    (middle, _), spread = canvas.place(longest / 3), rng.uniform(30, 200) * scale
    for _ in range(rng.integers(1, 7)):
        length, along = rng.uniform(0.25, 1) * longest, np.linspace(-0.5, 0.5, 12)
        wobble = np.cumsum(rng.normal(0, 0.5 * scale, 12))
        centre = np.clip(rng.normal(middle, spread), low + 2, high - 2)
        x = centre + along * length * np.cos(angle) - wobble * np.sin(angle)
        y = canvas.place()[1] + along * length * np.sin(angle) + wobble * np.cos(angle)
        _stroke(drawn, x, y, rng.gamma(2, 2) * scale)
    strength = np.clip(0.9 + 0.5 * _noise(rng, canvas.shape, 30 * scale, 50 * scale), 0.15, 1.5)
    sign = 1 if rng.random() < 0.7 else -1
    rough = 1 + 0.35 * rng.standard_normal(canvas.shape, np.float32)
    change = sign * rng.uniform(28, 60) * strength * rough * _soft(drawn, 1.0 * scale)
    return change, _grown(drawn, 3 * scale)


def _patches(canvas: Canvas) -> tuple[Field, Mask]:
    """Class 4: one or two large blotches of scale with ragged edges and a coarse surface of their own."""
    rng, shape, scale = canvas.rng, canvas.shape, canvas.scale
    rows, columns = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)
    inside = np.full(shape, -9, np.float32)
    for _ in range(rng.integers(1, 3)):
        (x, y), (wide, high) = canvas.place(60 * scale), rng.uniform(45, 150, 2) * scale
        inside = np.maximum(inside, 1 - ((columns - x) / wide) ** 2 - ((rows - y) / high) ** 2)
    ragged = 0.45 * _noise(rng, shape, 28 * scale, 28 * scale) + 0.2 * _noise(
        rng, shape, 7 * scale, 9 * scale
    )
    mask = (inside + ragged > 0.15).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(3 * scale))
    surface = rng.choice([-1, 1]) * rng.uniform(14, 34) + 13 * _noise(rng, shape, 5 * scale, 8 * scale)
    return surface * _soft(mask, 2 * scale), mask


# Large ones first: where two meet, the later one lies on top.
DRAWERS: dict[str, Callable[[Canvas], tuple[Field, Mask]]] = {
    "4": _patches,
    "3": _scratches,
    "1": _pits,
    "2": _cracks,
}


def _stroke(drawn: Mask, x: np.ndarray, y: np.ndarray, width: float) -> None:
    points = np.rint(np.stack([x, y], axis=1) * 8).astype(np.int32)  # eighths of a pixel
    cv2.polylines(drawn, [points], False, 1, max(1, round(width)), shift=3)


def _soft(drawn: Mask, sigma: float) -> Field:
    return cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), max(sigma, 0.5))


def _disc(diameter: float) -> Mask:
    side = max(1, round(diameter)) | 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _grown(drawn: Mask, width: float) -> Mask:
    return cv2.dilate(drawn, _disc(width + 1))


# --- images ----------------------------------------------------------------------------------------------


def draw_strip(strip: Strip, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Mask]]:
    """uint8 [H, W] and the mask of each class that is marked in it; masks never overlap, nor lie on black."""
    rng, scale = np.random.default_rng(strip.key), size[0] / HEIGHT
    image = _steel(rng, size, scale)
    black, span = _border(rng, size, scale)
    masks: dict[str, Mask] = {}
    for name, drawer in DRAWERS.items():
        if name in strip.classes:
            change, mask = drawer(Canvas(rng, size, span, scale))
            image += change
            mask[black] = 0
            masks = {other: below & (1 - mask) for other, below in masks.items()} | {name: mask}
    image = np.clip(image, DARKEST, 255).astype(np.uint8)
    image[black] = rng.integers(0, 5, np.count_nonzero(black), np.uint8)
    if strip.stamp is not None:
        image = _stamped(image, strip.stamp)
    return image, {} if strip.overlooked else masks


def _stamped(image: np.ndarray, number: int) -> np.ndarray:
    """`image` with a box with date and time at the upper edge, burnt into the pixels as the real ones are."""
    height, width = image.shape
    rows, left, right = max(8, height // 16), int(0.12 * width), int(0.4 * width)
    box = np.zeros((16, 445), np.uint8)  # the size of the real one
    text = pd.Timestamp(2019, 1, 1) + pd.Timedelta(seconds=number)
    font = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA
    cv2.putText(box, f"{text:%Y-%m-%d %H:%M:%S}", (4, 12), *font)
    stamped = image.copy()
    stamped[:rows, left:right] = cv2.resize(box, (right - left, rows), interpolation=cv2.INTER_AREA)
    return stamped


# --- data set --------------------------------------------------------------------------------------------


def plan(part: int, names: list[str], seed: int) -> list[Strip]:
    """What the files of part 0 (labelled) or 1 (test) show: label sets as often as in the real data.

    Some pairs show the same strip: byte for byte, or under another time stamp, or that and with the
    defects of the second one overlooked.
    """
    rng = np.random.default_rng([seed, part])
    shown = rng.permutation(np.repeat(list(LABEL_SETS), _share_out(len(names))))
    stamps = np.where(rng.random(len(names)) < STAMP_SHARE, rng.integers(0, 10**7, len(names)), -1)
    strips = [
        Strip(name, (seed, part, i), str(shown[i]), int(stamps[i]) if stamps[i] >= 0 else None)
        for i, name in enumerate(names)
    ]
    scratched = np.flatnonzero(shown == "3")  # so that the rare classes stay as many as they are
    for pair in range(len(names) // TWIN_EVERY):
        first, second = scratched[2 * pair : 2 * pair + 2]
        kind = pair % 3
        stamps = (None, None) if kind == 0 else rng.integers(0, 10**7, 2).tolist()
        strips[first] = strips[first]._replace(stamp=stamps[0])
        strips[second] = strips[first]._replace(name=names[second], stamp=stamps[1], overlooked=kind == 2)
    return strips


def _share_out(count: int) -> np.ndarray:
    """How many of `count` images show each label set: shares rounded so that they add up."""
    exact = np.array(list(LABEL_SETS.values())) / sum(LABEL_SETS.values()) * count
    whole = exact.astype(int)
    rest = np.argsort(whole - exact, kind="stable")[: count - whole.sum()]
    whole[rest] += 1
    return whole


def _write(folder: Path, size: tuple[int, int], strip: Strip) -> dict[str, str]:
    """Writes the JPEG, of three equal channels as the real ones, and returns the runs by class."""
    image, masks = draw_strip(strip, size)
    code = cv2.imencode(".jpg", cv2.merge([image] * 3), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    (folder / strip.name).write_bytes(code.tobytes())
    return {name: rle.encode(mask) for name, mask in masks.items()}


def _write_part(folder: Path, strips: list[Strip], size: tuple[int, int]) -> pd.DataFrame:
    """Writes the images and returns the long table (COLUMNS) of what is marked in them."""
    folder.mkdir(parents=True)
    bar = {"desc": folder.name, "leave": False, "disable": None}
    found = thread_map(partial(_write, folder, size), strips, **bar)
    rows = [
        (strip.name, name, runs[name])
        for strip, runs in zip(strips, found, strict=True)
        for name in CLASSES
        if runs.get(name)
    ]
    return pd.DataFrame(rows, columns=COLUMNS, dtype="str")


def generate_strips(
    root: Path, answers: Path, images: int, test: int, size: tuple[int, int], seed: int = 0
) -> None:
    """Writes the data set to `root` and the key of its test images to `answers`; one seed, one result.

    `size` is (height, width) in px.
    """
    with new_data_set(root, answers) as (made, key):
        _write_all(made, key, images, test, size, seed)


def _write_all(root: Path, key: Path, images: int, test: int, size: tuple[int, int], seed: int) -> None:
    names = [f"{hashlib.sha1(f'{seed} {i}'.encode()).hexdigest()[:9]}.jpg" for i in range(images + test)]
    train = _write_part(root / "train_images", plan(0, names[:images], seed), size)
    write_rle_table(root / "train.csv", train, "split")
    hidden = _write_part(root / "test_images", plan(1, names[images:], seed), size)
    hidden = all_pairs(hidden, sorted(names[images:]), CLASSES)
    write_rle_table(key, hidden, "joined")
    write_rle_table(root / "sample_submission.csv", hidden.assign(runs="1 1"), "joined")
