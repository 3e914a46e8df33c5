"""Generated steel strips: brushed steel, four defect classes, several per image.

They are generated where they do not exist yet, then read like the competition that they imitate. Lengths are
those of a strip 256 px high; other heights scale them. Brightness is in grey levels.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from pydantic import Field as Setting
from tqdm.contrib.concurrent import thread_map

from defects.config_schema import Count, DataConfig, Seed
from defects.data import rle
from defects.data.generated import generate_if_missing, new_data_set
from defects.data.layouts import severstal
from defects.data.listing import Listing
from defects.data.rle import RLE_COLUMNS, all_pairs, write_rle_table
from defects.settings import Section

STRIP_CLASSES = ["1", "2", "3", "4"]
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

Side = Annotated[int, Setting(ge=32)]  # px, of an image
StripField = np.ndarray  # float32 [H, W]
Mask = np.ndarray  # uint8 [H, W], 0 or 1


class Settings(Section):
    """What is generated where data.root does not exist yet."""

    images: Count = 480  # labelled ones
    test: Count = 120
    size: tuple[Side, Side] = (128, 800)  # height, width in pixels
    seed: Seed = 0


def list_data(data: DataConfig) -> Listing:
    """Generate the images if `data.root` is missing. Raises UserError without a place for the answers."""
    generate_if_missing(data, "the strips", generate_strips)
    return severstal.list_data(data)


def generate_strips(root: Path, answers: Path, settings: Settings) -> None:
    """Writes the data set to `root` and the key of its test images to `answers`; one seed, one result."""
    with new_data_set(root, answers) as (data_folder, key_file):
        names = []
        for number in range(settings.images + settings.test):
            digest = hashlib.sha1(f"{settings.seed} {number}".encode()).hexdigest()
            names.append(f"{digest[:9]}.jpg")
        train_names = names[: settings.images]
        test_names = names[settings.images :]
        train_strips = plan_strips(0, train_names, settings.seed)
        train = _write_part(data_folder / "train_images", train_strips, settings.size)
        write_rle_table(data_folder / "train.csv", train, "split")
        test_strips = plan_strips(1, test_names, settings.seed)
        test = _write_part(data_folder / "test_images", test_strips, settings.size)
        answer_key = all_pairs(test, sorted(test_names), STRIP_CLASSES)
        write_rle_table(key_file, answer_key, "joined")
        write_rle_table(data_folder / "sample_submission.csv", answer_key.assign(runs="1 1"), "joined")


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
        """A random (x, y) on the steel, `margin` px from its left and right end where it is wide enough."""
        low, high = self.span
        margin = min(margin, (high - low) / 3)
        return self.rng.uniform(low + margin, high - margin), self.rng.uniform(0.06, 0.94) * self.shape[0]


# --- steel -----------------------------------------------------------------------------------------------


def _noise(rng: Generator, shape: tuple[int, int], down: float, across: float) -> StripField:
    """Noise that changes over about `down` and `across` px, unit deviation before it is enlarged."""
    height, width = shape
    coarse = (max(2, round(height / down)), max(2, round(width / across)))
    return cv2.resize(rng.standard_normal(coarse, np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _steel(rng: Generator, shape: tuple[int, int], scale: float) -> StripField:
    """Brushed rolled steel: fine grain, brushing along or across the strip, slow changes of brightness."""
    horizontal = rng.random() < 0.7
    streak_sizes = [(1, 24 * scale), (2, 160 * scale), (3 * scale, 900 * scale)]  # px across and along
    contrasts = rng.uniform(2.5, 5), rng.uniform(1.5, 4), rng.uniform(1, 4)
    steel = rng.standard_normal(shape, np.float32) * rng.uniform(2, 4)
    for (across, along), contrast in zip(streak_sizes, contrasts, strict=True):
        size = (across, along) if horizontal else (along, across)
        steel += contrast * _noise(rng, shape, *size)
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


# --- defects: the change in grey levels, and the pixels that an annotator would mark ---------------------


def _pits(canvas: Canvas) -> tuple[StripField, Mask]:
    """Class 1: many small dark pits with a bright rim, scattered around one place."""
    rng = canvas.rng
    scale = canvas.scale
    drawn = np.zeros(canvas.shape, np.uint8)
    middle, _ = canvas.place()
    spread = rng.uniform(60, 260) * scale
    count = rng.integers(14, 60)
    x = rng.normal(middle, spread, count)
    y = rng.uniform(0.03, 0.97, count) * canvas.shape[0]
    radii = np.maximum(rng.gamma(4, 0.75, (count, 2)) * scale, 0.7)
    for centre, axes, angle in zip(zip(x, y, strict=True), radii, rng.uniform(0, 180, count), strict=True):
        cv2.ellipse(drawn, (centre, 2 * axes, angle), 1, cv2.FILLED)
    pit = _soft(drawn, 0.8 * scale)
    rim = _soft(drawn, 2.2 * scale)
    return rng.uniform(18, 30) * rim - rng.uniform(55, 85) * pit, _grown(drawn, 2 * scale)


def _cracks(canvas: Canvas) -> tuple[StripField, Mask]:
    """Class 2: one to three thin, dark, nearly vertical strokes."""
    rng = canvas.rng
    scale = canvas.scale
    drawn = np.zeros(canvas.shape, np.uint8)
    for _ in range(rng.integers(1, 4)):
        x, y = canvas.place(12 * scale)
        length = rng.uniform(25, 110) * scale
        steps = np.linspace(-0.5, 0.5, 9)
        bend = np.cumsum(rng.normal(0, 1.3 * scale, 9))
        _stroke(drawn, x + bend - bend.mean(), y + steps * length, rng.uniform(1, 2.4) * scale)
    return -rng.uniform(40, 70) * _soft(drawn, 0.8 * scale), _grown(drawn, 3 * scale)


def _scratches(canvas: Canvas) -> tuple[StripField, Mask]:
    """Class 3: one to six long streaks in one direction, bright or dark, now and then interrupted."""
    rng = canvas.rng
    scale = canvas.scale
    low, high = canvas.span
    drawn = np.zeros(canvas.shape, np.uint8)
    angle = np.deg2rad(rng.normal(0, 2) if rng.random() < 0.55 else rng.uniform(60, 120))
    longest = min(0.9 * (high - low), 900 * scale) if abs(angle) < 0.5 else 240 * scale
    middle, _ = canvas.place(longest / 3)
    spread = rng.uniform(30, 200) * scale
    along = np.linspace(-0.5, 0.5, 12)
    for _ in range(rng.integers(1, 7)):
        length = rng.uniform(0.25, 1) * longest
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


def _patches(canvas: Canvas) -> tuple[StripField, Mask]:
    """Class 4: one or two large blotches of scale with ragged edges and a coarse surface of their own."""
    rng = canvas.rng
    shape = canvas.shape
    scale = canvas.scale
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)
    inside = np.full(shape, -9, np.float32)
    for _ in range(rng.integers(1, 3)):
        x, y = canvas.place(60 * scale)
        wide, high = rng.uniform(45, 150, 2) * scale
        inside = np.maximum(inside, 1 - ((columns - x) / wide) ** 2 - ((rows - y) / high) ** 2)
    ragged = 0.45 * _noise(rng, shape, 28 * scale, 28 * scale)
    ragged = ragged + 0.2 * _noise(rng, shape, 7 * scale, 9 * scale)
    mask = (inside + ragged > 0.15).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(3 * scale))
    surface = rng.choice([-1, 1]) * rng.uniform(14, 34) + 13 * _noise(rng, shape, 5 * scale, 8 * scale)
    return surface * _soft(mask, 2 * scale), mask


# Large ones first: where two meet, the later one lies on top.
DRAWERS: dict[str, Callable[[Canvas], tuple[StripField, Mask]]] = {
    "4": _patches,
    "3": _scratches,
    "1": _pits,
    "2": _cracks,
}


def _stroke(drawn: Mask, x: np.ndarray, y: np.ndarray, width: float) -> None:
    points = np.rint(np.stack([x, y], axis=1) * 8).astype(np.int32)  # eighths of a pixel
    cv2.polylines(drawn, [points], False, 1, max(1, round(width)), shift=3)


def _soft(drawn: Mask, sigma: float) -> StripField:
    return cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), max(sigma, 0.5))


def _disc(diameter: float) -> Mask:
    side = max(1, round(diameter)) | 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _grown(drawn: Mask, width: float) -> Mask:
    return cv2.dilate(drawn, _disc(width + 1))


# --- images ----------------------------------------------------------------------------------------------


def draw_strip(strip: Strip, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Mask]]:
    """uint8 [H, W] and the mask of each class that is marked in it; masks never overlap, nor lie on black."""
    rng = np.random.default_rng(strip.key)
    scale = size[0] / HEIGHT
    image = _steel(rng, size, scale)
    black, span = _border(rng, size, scale)
    masks: dict[str, Mask] = {}
    for name, drawer in DRAWERS.items():
        if name in strip.classes:
            change, mask = drawer(Canvas(rng, size, span, scale))
            image += change
            mask[black] = 0
            masks = {below: area & (1 - mask) for below, area in masks.items()} | {name: mask}
    image = np.clip(image, DARKEST, 255).astype(np.uint8)
    image[black] = rng.integers(0, 5, np.count_nonzero(black), np.uint8)
    if strip.stamp is not None:
        image = _stamped(image, strip.stamp)
    return image, {} if strip.overlooked else masks


def _stamped(image: np.ndarray, number: int) -> np.ndarray:
    """`image` with a box with date and time at the upper edge, burnt into the pixels as the real ones are."""
    height, width = image.shape
    rows = max(8, height // 16)
    left = int(0.12 * width)
    right = int(0.4 * width)
    box = np.zeros((16, 445), np.uint8)  # the size of the real one
    text = pd.Timestamp(2019, 1, 1) + pd.Timedelta(seconds=number)
    font = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA
    cv2.putText(box, f"{text:%Y-%m-%d %H:%M:%S}", (4, 12), *font)
    stamped = image.copy()
    stamped[:rows, left:right] = cv2.resize(box, (right - left, rows), interpolation=cv2.INTER_AREA)
    return stamped


# --- files -----------------------------------------------------------------------------------------------


def plan_strips(part: int, names: list[str], seed: int) -> list[Strip]:
    """What the files of part 0 (labelled) or 1 (test) show: label sets as often as in the real data.

    Some pairs show the same strip: byte for byte, or under another time stamp, or that and with the
    defects of the second one overlooked.
    """
    rng = np.random.default_rng([seed, part])
    label_sets = rng.permutation(np.repeat(list(LABEL_SETS), _share_out(len(names))))
    stamps = np.where(rng.random(len(names)) < STAMP_SHARE, rng.integers(0, 10**7, len(names)), -1)
    strips = []
    for number, name in enumerate(names):
        stamp = int(stamps[number]) if stamps[number] >= 0 else None
        strips.append(Strip(name, (seed, part, number), str(label_sets[number]), stamp))
    scratched = np.flatnonzero(label_sets == "3")  # so that the rare classes stay as many as they are
    for pair in range(len(names) // TWIN_EVERY):
        first, second = scratched[2 * pair : 2 * pair + 2]
        kind = pair % 3
        stamps_of_pair = (None, None) if kind == 0 else rng.integers(0, 10**7, 2).tolist()
        strips[first] = strips[first]._replace(stamp=stamps_of_pair[0])
        strips[second] = strips[first]._replace(
            name=names[second], stamp=stamps_of_pair[1], overlooked=kind == 2
        )
    return strips


def _share_out(count: int) -> np.ndarray:
    """How many of `count` images show each label set: shares rounded so that they add up."""
    shares = np.array(list(LABEL_SETS.values())) / sum(LABEL_SETS.values())
    exact = shares * count
    counts = exact.astype(int)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: count - counts.sum()]
    counts[largest_remainders] += 1
    return counts


def _write(folder: Path, size: tuple[int, int], strip: Strip) -> dict[str, str]:
    """Writes the JPEG, of three equal channels as the real ones, and returns the runs by class."""
    image, masks = draw_strip(strip, size)
    code = cv2.imencode(".jpg", cv2.merge([image] * 3), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    (folder / strip.name).write_bytes(code.tobytes())
    return {name: rle.encode(mask) for name, mask in masks.items()}


def _write_part(folder: Path, strips: list[Strip], size: tuple[int, int]) -> pd.DataFrame:
    """Writes the images and returns the long table (RLE_COLUMNS) of what is marked in them."""
    folder.mkdir(parents=True)
    runs_of_strips = thread_map(
        partial(_write, folder, size), strips, desc=folder.name, leave=False, disable=None
    )
    rows = []
    for strip, runs in zip(strips, runs_of_strips, strict=True):
        rows += [(strip.name, name, runs[name]) for name in STRIP_CLASSES if runs.get(name)]
    return pd.DataFrame(rows, columns=RLE_COLUMNS, dtype="str")
