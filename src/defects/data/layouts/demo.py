"""The demo set, made up: ten grey textures, four kinds of local defect, one hidden key.

It is generated where it does not exist yet, then read like the competition that it imitates. Every texture is
drawn as a *field*: zero mean, unit deviation, softly limited, and free of slow variation, so that a defect
stands out where it lies while brightness and contrast, drawn per image, tell nothing.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from pydantic import Field as Setting
from scipy.spatial import cKDTree

from defects.config_schema import Count, DataConfig, Seed
from defects.data.generated import generate_if_missing, new_data_set
from defects.data.layouts import defect_normal
from defects.data.listing import Listing
from defects.settings import Section

DEMO_SIDE = 128  # px, side of an image
FIELD_SIDE = 192  # px, side of a field before it is rotated and cropped: DEMO_SIDE * sqrt(2) or more
MAX_DEVIATIONS = 2.6  # deviations; no texture exceeds it, so that no image is ever clipped
TEST_DEFECT_SHARE = 0.15
DEMO_MASK_SHARE = 0.35  # share of the full change from which a pixel belongs to the mask

DemoField = np.ndarray  # (height, width) float32


class Settings(Section):
    """What is generated where data.root does not exist yet."""

    normal: Count = 600
    defect: Count = 30
    test: Count = 400
    strength: Annotated[float, Setting(gt=0, le=3)] = 1.0  # times the change that a defect makes
    seed: Seed = 0


def list_data(data: DataConfig) -> Listing:
    """Generate the images if `data.root` is missing. Raises UserError without a place for the answers."""
    generate_if_missing(data, "the demo images", generate_demo)
    return defect_normal.list_data(data)


def generate_demo(root: Path, answers: Path, settings: Settings) -> None:
    """Writes the data set to `root` and the key of its test half to `answers`; one seed, one result."""
    with new_data_set(root, answers) as (data_folder, key_file):
        _write_train(data_folder / "train", settings)
        _write_test(data_folder / "test", settings).to_csv(key_file, index=False)


# --- textures: raw (FIELD_SIDE, FIELD_SIDE) fields; scale and offset do not matter ---


@cache
def _grid() -> tuple[DemoField, DemoField]:
    """Row and column coordinates in px, each (FIELD_SIDE, FIELD_SIDE)."""
    y, x = np.mgrid[:FIELD_SIDE, :FIELD_SIDE].astype(np.float32)
    return y, x


def _noise(rng: Generator, across: float, down: float | None = None) -> DemoField:
    """Gaussian noise smoothed by `across` and `down` px (equal by default), unit deviation."""
    white = rng.standard_normal((FIELD_SIDE, FIELD_SIDE), dtype=np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), across, sigmaY=down or across)
    return smooth / smooth.std()


def _sandblast(rng: Generator) -> DemoField:
    return _noise(rng, 0.9)


def _mottle(rng: Generator) -> DemoField:
    return _noise(rng, 2.2)


def _cast(rng: Generator) -> DemoField:
    """Noise of several sizes at once, the fine ones strongest."""
    return sum(_noise(rng, size) / size**0.5 for size in (0.8, 1.6, 3.2))


def _brushed(rng: Generator) -> DemoField:
    return _noise(rng, 9, 0.8)


def _grain(rng: Generator) -> DemoField:
    """Short strokes along one direction, dark ones deeper than bright ones are high."""
    return -np.exp(0.4 * _noise(rng, 3.2, 1))


def _weave(rng: Generator) -> DemoField:
    """Threads that pass over and under each other, about 8 px apart."""
    y, x = _grid()
    pitch = rng.uniform(7.5, 9)
    shift_y, shift_x = rng.uniform(0, 20, 2)
    v = (y + shift_y) / pitch
    u = (x + shift_x) / pitch
    over = (np.floor(v) + np.floor(u)) % 2 == 0
    thread = np.where(over, np.abs(np.sin(np.pi * v)), 0.7 * np.abs(np.sin(np.pi * u)))
    return thread + 0.08 * _noise(rng, 1)


def _stripes(rng: Generator) -> DemoField:
    """Diagonal stripes, slightly wavy."""
    y, x = _grid()
    period = rng.uniform(7, 9)
    phase = rng.uniform(0, 2 * np.pi)
    wave = (x + y) / np.sqrt(2) * (2 * np.pi / period) + phase + 0.4 * _noise(rng, 8)
    return np.sin(wave) + 0.3 * _noise(rng, 1)


def _rings(rng: Generator) -> DemoField:
    """Wood: wide arcs around a centre far outside the image."""
    y, x = _grid()
    radius = np.hypot(y + rng.uniform(60, 120), x - rng.uniform(0, FIELD_SIDE))
    wave = radius * (2 * np.pi / rng.uniform(8, 10)) + 0.8 * _noise(rng, 8)
    return np.sin(wave) + 0.35 * _noise(rng, 0.7, 4)


def _cells(rng: Generator) -> DemoField:
    """Voronoi cells about 9 px wide: dark borders where the two nearest seeds are equally far."""
    steps = np.arange(-4.5, FIELD_SIDE + 9, 9)
    seeds = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    seeds = seeds + rng.uniform(-3.5, 3.5, seeds.shape)
    near, _ = cKDTree(seeds).query(np.stack(_grid(), -1).reshape(-1, 2), k=2)
    gap = (near[:, 1] - near[:, 0]).reshape(FIELD_SIDE, FIELD_SIDE)
    return np.minimum(gap, 3).astype(np.float32) + 0.3 * _noise(rng, 1)


def _peel(rng: Generator) -> DemoField:
    """Orange peel: bumps of one size, lit from the side."""
    bumps = _noise(rng, 2.2)
    return cv2.Sobel(bumps, cv2.CV_32F, 1, 0) / 4 + 0.15 * _noise(rng, 0.8)


TEXTURES: dict[str, Callable[[Generator], DemoField]] = {
    "sandblast": _sandblast,
    "mottle": _mottle,
    "cast": _cast,
    "brushed": _brushed,
    "grain": _grain,
    "weave": _weave,
    "stripes": _stripes,
    "rings": _rings,
    "cells": _cells,
    "peel": _peel,
}


def _rotate(field: DemoField, degrees: float, zoom: float = 1.0) -> DemoField:
    """The field rotated and enlarged about its centre, same size."""
    matrix = cv2.getRotationMatrix2D(((FIELD_SIDE - 1) / 2,) * 2, degrees, zoom)
    return cv2.warpAffine(
        field,
        matrix,
        (FIELD_SIDE, FIELD_SIDE),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def _even(field: DemoField) -> DemoField:
    """Zero mean, unit deviation, no slow variation (it would hide a blotch), within MAX_DEVIATIONS."""
    field = field - cv2.GaussianBlur(field, (0, 0), 8)
    return _limit((field - field.mean()) / field.std())


def _limit(field: DemoField) -> DemoField:
    return MAX_DEVIATIONS * np.tanh(field / MAX_DEVIATIONS)


def _crop(field: DemoField) -> DemoField:
    """The central (DEMO_SIDE, DEMO_SIDE) part."""
    edge = (FIELD_SIDE - DEMO_SIDE) // 2
    return field[edge : edge + DEMO_SIDE, edge : edge + DEMO_SIDE]


# --- defects: from a field of FIELD_SIDE pixels to the changed one of DEMO_SIDE and the share of the change
# --- pixel, 0 to 1 ---


def _offsets(rng: Generator, margin: float) -> tuple[DemoField, DemoField]:
    """Rows and columns in px from a random centre at least `margin` px inside, in a random direction."""
    centre_y, centre_x = rng.uniform(margin, DEMO_SIDE - margin, 2)
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:DEMO_SIDE, :DEMO_SIDE]
    # Of float32's precision, but float64: NumPy 2 would make them that below, NumPy 1 would not.
    y = (rows - centre_y).astype(np.float32).astype(float)
    x = (columns - centre_x).astype(np.float32).astype(float)
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def _scratch(rng: Generator, field: DemoField) -> tuple[DemoField, DemoField]:
    """A thin curve 45 to 85 px long, darker or brighter than anything in the texture."""
    y, x = _offsets(rng, 42)
    length = rng.uniform(45, 85)
    width = rng.uniform(1.2, 1.6)
    bend = rng.uniform(-0.004, 0.004) * x**2
    ends = 1 / (1 + np.exp(np.abs(x) - length / 2))
    weight = np.exp(-0.5 * ((y - bend) / width) ** 2) * ends
    return _blend(_crop(field), rng.choice([-1, 1]) * rng.uniform(3.5, 4), weight), weight


def _blotch(rng: Generator, field: DemoField) -> tuple[DemoField, DemoField]:
    """A soft stain: the texture goes on below it, darker or brighter."""
    y, x = _offsets(rng, 20)
    size = rng.uniform(6.5, 10, 2)
    weight = np.exp(-0.5 * ((y / size[0]) ** 2 + (x / size[1]) ** 2))
    return _crop(field) + rng.choice([-1, 1]) * rng.uniform(2.4, 3.0) * weight, weight


def _pit(rng: Generator, field: DemoField) -> tuple[DemoField, DemoField]:
    """A dent 4.5 to 6.5 px in radius with a rim of the opposite brightness."""
    y, x = _offsets(rng, 14)
    radius = rng.uniform(4.5, 6.5)
    distance = np.hypot(y, x * rng.uniform(0.75, 1))
    weight = 1 / (1 + np.exp(2 * (distance - radius - 2)))
    profile = np.tanh(distance - radius) * rng.choice([-1, 1]) * rng.uniform(3, 3.6)
    return _blend(_crop(field), profile, weight), weight


def _altered(rng: Generator, field: DemoField) -> tuple[DemoField, DemoField]:
    """Inside an ellipse the texture is coarser, stronger and rotated; its mean brightness stays."""
    y, x = _offsets(rng, 26)
    size = rng.uniform(14, 18, 2)
    distance = np.hypot(y / size[0], x / size[1])
    weight = 1 / (1 + np.exp(12 * (distance - 1)))
    patch = _crop(_rotate(field, rng.uniform(50, 90), rng.uniform(2.4, 3)))
    # A coarse patch is flat by chance now and then: give all the same deviation.
    patch = patch - np.average(patch, weights=weight)
    patch = _limit(2 * patch / np.sqrt(np.average(patch**2, weights=weight)))
    patch = patch + np.average(_crop(field) - patch, weights=weight)
    return _blend(_crop(field), patch, weight), weight


def _blend(field: DemoField, target: DemoField | float, weight: DemoField) -> DemoField:
    return field + weight * (target - field)


DEMO_DEFECTS: dict[str, Callable[[Generator, DemoField], tuple[DemoField, DemoField]]] = {
    "scratch": _scratch,
    "blotch": _blotch,
    "pit": _pit,
    "altered": _altered,
}


# --- images ---


def draw_image(
    key: list[int], texture: str, kind: str = "normal", strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The image and its mask, both (DEMO_SIDE, DEMO_SIDE) uint8, that belong to the random key.

    The defect is drawn last, from the same generator: for one key, two kinds differ by the defect alone,
    and two values of `strength`, by which the defect's change is multiplied, by nothing else.
    """
    rng = np.random.default_rng(key)
    field = _even(_rotate(TEXTURES[texture](rng), rng.uniform(-12, 12)))
    light = _light(rng)
    contrast = rng.uniform(9, 18)
    normal = _crop(field)
    if kind == "normal":
        changed = normal
        weight = np.zeros((DEMO_SIDE, DEMO_SIDE))
    else:
        changed, weight = DEMO_DEFECTS[kind](rng, field)
    changed = (1 - strength) * normal + strength * changed
    image = np.rint(light + contrast * changed).clip(0, 255).astype(np.uint8)
    return image, np.where(weight > DEMO_MASK_SHARE, 255, 0).astype(np.uint8)


def _light(rng: Generator) -> DemoField:
    """Brightness in grey levels, (DEMO_SIDE, DEMO_SIDE): a random mean, a slight slope, and sensor noise."""
    slope = np.linspace(-1, 1, DEMO_SIDE)
    down, across = rng.uniform(-6, 6, 2)
    return (
        rng.uniform(100, 155)
        + down * slope[:, None]
        + across * slope
        + rng.normal(0, 1, (DEMO_SIDE, DEMO_SIDE))
    )


# --- files ---


def _plan(count: int, has_defects: bool) -> list[tuple[str, str]]:
    """(texture, kind) of `count` images; 40 successive defects meet every pair once."""
    textures = list(TEXTURES)
    kinds = list(DEMO_DEFECTS)
    pairs = []
    for number in range(count):
        kind = kinds[(number + number // 20) % len(kinds)] if has_defects else "normal"
        pairs.append((textures[number % len(textures)], kind))
    return pairs


def _write(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _write_train(folder: Path, settings: Settings) -> None:
    for name in ("normal_images", "defect_images", "defect_masks"):
        (folder / name).mkdir(parents=True)
    for number, (texture, kind) in enumerate(_plan(settings.normal, has_defects=False)):
        image, _ = draw_image([settings.seed, 0, number], texture, kind)
        _write(folder / "normal_images" / f"normal_{number:04d}.png", image)
    for number, (texture, kind) in enumerate(_plan(settings.defect, has_defects=True)):
        image, mask = draw_image([settings.seed, 1, number], texture, kind, settings.strength)
        _write(folder / "defect_images" / f"defect_{number:04d}.png", image)
        _write(folder / "defect_masks" / f"defect_{number:04d}.png", mask)


def _write_test(folder: Path, settings: Settings) -> pd.DataFrame:
    """Writes the test half in shuffled order and returns its key: ImageId, answer, kind."""
    (folder / "images").mkdir(parents=True)
    defects = round(settings.test * TEST_DEFECT_SHARE)
    ordered = _plan(settings.test - defects, has_defects=False) + _plan(defects, has_defects=True)
    plan = [ordered[place] for place in np.random.default_rng([settings.seed, 3]).permutation(settings.test)]
    names = [f"test_{number:04d}.png" for number in range(settings.test)]
    for number, (name, (texture, kind)) in enumerate(zip(names, plan, strict=True)):
        image, _ = draw_image([settings.seed, 2, number], texture, kind, settings.strength)
        _write(folder / "images" / name, image)
    key = pd.DataFrame({"ImageId": names, "kind": [kind for _, kind in plan]})
    key.insert(1, "answer", (key["kind"] != "normal").astype(int))
    key[["ImageId", "answer"]].assign(answer=0).to_csv(folder / "sample_submission.csv", index=False)
    return key
