"""Recall and false joins of the sibling search on generated photographs of several kinds of objects.

Planted siblings are other exposures, shifts, crops, flips, quarter turns and re-encodings of a photograph.

python benchmarks/siblings.py --images 160 --seeds 2
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config_schema import DuplicateConfig  # noqa: E402
from defects.data.duplicates import SiblingSearch, search_siblings  # noqa: E402
from defects.data.registration import thumbnail  # noqa: E402

SIDE = 320  # pixels, of the photographs
SENSOR_NOISE = 2.0  # grey levels
PLANTED_SHARE = 0.1  # of the images
CHANGES = ["exposure", "shift", "crop", "flip", "quarter turn", "re-encoded", "several"]

Photograph = Callable[[np.random.Generator], np.ndarray]  # of a new object: float32 [SIDE, SIDE], 0 to 255


# --- kinds of objects ------------------------------------------------------------------------------------


def grain(rng: np.random.Generator, sigma: float, side: int = SIDE) -> np.ndarray:
    """Noise of this coarseness and deviation 1: float32 [side, side]."""
    picture = cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0), sigma)
    return picture / picture.std()


def marks(rng: np.random.Generator) -> np.ndarray:
    """What tells one object from another of its design: grain, a few scratches and stains."""
    picture = 2.5 * grain(rng, 1.2) + 2 * grain(rng, 6)
    for _ in range(rng.poisson(2)):
        start, step = rng.uniform(0, SIDE, 2), rng.uniform(-40, 40, 2)
        tone = float(rng.uniform(-20, 20))
        cv2.line(picture, start.astype(int).tolist(), (start + step).astype(int).tolist(), tone, 2)
    for _ in range(rng.poisson(2)):
        centre, radius = rng.integers(0, SIDE, 2).tolist(), int(rng.integers(2, 6))
        cv2.circle(picture, centre, radius, float(rng.uniform(-25, 25)), -1)
    return picture


def moved(picture: np.ndarray, degrees: float, shift: np.ndarray) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), degrees, 1)
    matrix[:, 2] += shift
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def textures(_: np.random.Generator) -> Photograph:
    """Every object is a texture of its own: no design."""

    def photograph(rng: np.random.Generator) -> np.ndarray:
        coarse = rng.uniform(3, 10)
        return 120 + 25 * grain(rng, coarse) + 12 * grain(rng, coarse / 3)

    return photograph


def textures_with_structure(design: np.random.Generator) -> Photograph:
    """A weave and a seam that lie nearly alike in every photograph, and a grain of its own."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    period, slant = design.uniform(9, 16), design.uniform(-0.4, 0.4)
    weave = np.sin(2 * np.pi * (x + slant * y) / period) + np.sin(2 * np.pi * (y - slant * x) / period)
    structure = 120 + 18 * weave - 60 * np.exp(-np.square((y - design.uniform(80, 240)) / 6))

    def photograph(rng: np.random.Generator) -> np.ndarray:
        own = 5 * grain(rng, 2) + 5 * grain(rng, 7)
        return moved(structure + own, rng.normal(0, 0.2), rng.uniform(-2, 2, 2))

    return photograph


def plates(design: np.random.Generator, is_rotated: bool) -> Photograph:
    """Stamped plates with holes and a printed number, all of one design."""
    part = np.full((SIDE, SIDE), 205, np.uint8)
    half = design.integers(85, 115, 2)
    top, bottom = (SIDE // 2 - half).tolist(), (SIDE // 2 + half).tolist()
    cv2.rectangle(part, top, bottom, float(design.uniform(90, 150)), -1)
    for _ in range(7):
        centre = (SIDE // 2 + design.uniform(-0.75, 0.75, 2) * half).astype(int).tolist()
        cv2.circle(part, centre, int(design.integers(5, 18)), float(design.uniform(20, 200)), -1)
    cv2.putText(part, f"A{design.integers(1000)}", (SIDE // 2 - 50, SIDE // 2), 0, 1, 40.0, 2)

    def photograph(rng: np.random.Generator) -> np.ndarray:
        degrees = rng.uniform(0, 360) if is_rotated else rng.normal(0, 0.3)
        reach = 8 if is_rotated else 2
        return moved(part.astype(np.float32) + marks(rng), degrees, rng.uniform(-reach, reach, 2))

    return photograph


def aligned_plates(design: np.random.Generator) -> Photograph:
    return plates(design, is_rotated=False)


def rotated_plates(design: np.random.Generator) -> Photograph:
    return plates(design, is_rotated=True)


def bottles(design: np.random.Generator) -> Photograph:
    """Rings seen from above: the same at any angle but for reflections."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    rings = []
    for radius in design.uniform(0.1, 0.38, 5):
        rings.append((radius, design.uniform(0.01, 0.03), design.uniform(-60, 90)))

    def photograph(rng: np.random.Generator) -> np.ndarray:
        offset_y, offset_x = rng.normal(SIDE / 2, 1.5, 2)
        radius = np.hypot(y - offset_y, x - offset_x) / SIDE
        angle = np.arctan2(y - offset_y, x - offset_x)
        body = 100 + marks(rng)
        for middle, width, tone in rings:
            reflection = 1 + 0.3 * np.cos(angle + rng.uniform(0, 2 * np.pi))
            body += tone * reflection * np.exp(-np.square((radius - middle) / width))
        return np.where(radius < 0.43, body, 230).astype(np.float32)

    return photograph


def screws(design: np.random.Generator) -> Photograph:
    """Threaded rods at any angle, lit from one side; the thread begins anywhere."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    length, thickness = SIDE * design.uniform(0.3, 0.4), SIDE * design.uniform(0.06, 0.1)
    pitch = SIDE * design.uniform(0.03, 0.05)

    def photograph(rng: np.random.Generator) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi)
        offset_y, offset_x = rng.normal(SIDE / 2, 5, 2)
        along = (x - offset_x) * np.cos(angle) + (y - offset_y) * np.sin(angle)
        across = (y - offset_y) * np.cos(angle) - (x - offset_x) * np.sin(angle)
        thread = 28 * np.sin(2 * np.pi * (along + 0.25 * across) / pitch + rng.uniform(0, 2 * np.pi))
        body = 110 + thread + 30 * np.cos(angle) * across / thickness + marks(rng)
        is_head = (np.abs(along + length) < 0.07 * SIDE) & (np.abs(across) < 2 * thickness)
        is_rod = (np.abs(along) < length) & (np.abs(across) < thickness)
        share = cv2.GaussianBlur((is_head | is_rod).astype(np.float32), (0, 0), 0.8)
        return 200 * (1 - share) + body * share

    return photograph


def circuit_boards(design: np.random.Generator) -> Photograph:
    """Many components, placed by a machine."""
    board = np.full((SIDE, SIDE), 70, np.float32)
    for _ in range(50):
        corner, size = design.integers(0, SIDE, 2), design.integers(5, 40, 2)
        tone = float(design.uniform(20, 220))
        cv2.rectangle(board, corner.tolist(), (corner + size).tolist(), tone, -1)

    def photograph(rng: np.random.Generator) -> np.ndarray:
        return moved(board + marks(rng), 0, rng.uniform(-2, 2, 2))

    return photograph


def several_kinds(design: np.random.Generator) -> Photograph:
    """Bottles, screws, boards and textures in one folder."""
    kinds = [make(design) for make in (bottles, screws, circuit_boards, textures)]

    def photograph(rng: np.random.Generator) -> np.ndarray:
        return kinds[rng.integers(len(kinds))](rng)

    return photograph


KINDS = [
    textures,
    textures_with_structure,
    aligned_plates,
    rotated_plates,
    bottles,
    screws,
    circuit_boards,
    several_kinds,
]


# --- photographs and their siblings ----------------------------------------------------------------------


def digitize(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE]: the scene under slightly uneven light, with sensor noise."""
    slope = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + rng.normal(0, 0.03) * slope + rng.normal(0, 0.03) * slope[:, None] + rng.normal(0, 0.03)
    return np.clip(scene * light + rng.normal(0, SENSOR_NOISE, scene.shape), 0, 255).astype(np.uint8)


def change(picture: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Another photograph or copy, uint8 [H, W]."""
    if name == "exposure":
        bright = (picture / 255.0) ** rng.uniform(0.7, 1.4) * rng.uniform(0.6, 1.15)
        return np.clip(255 * bright, 0, 255).astype(np.uint8)
    if name == "shift":
        reach = 0.05 * SIDE
        return moved(picture, 0, rng.uniform(-reach, reach, 2).round())
    if name == "crop":
        top, bottom, left, right = rng.integers(0, round(0.04 * SIDE), 4)
        return picture[top : SIDE - bottom, left : SIDE - right]
    if name == "flip":
        return cv2.flip(picture, int(rng.integers(2)))
    if name == "quarter turn":
        return np.rot90(picture, rng.integers(1, 4))
    if name == "re-encoded":
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 95))]
        return cv2.imdecode(cv2.imencode(".jpg", np.ascontiguousarray(picture), quality)[1], 0)
    for step in ("exposure", "shift", "flip", "re-encoded"):
        picture = change(picture, step, rng)
    return picture


def generate(
    make: Callable[[np.random.Generator], Photograph], images: int, size: int, seed: int
) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    """Thumbnails uint8 [N, size, size], and of the pairs of siblings among them what was changed."""
    design, rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    photograph = make(design)
    planted = round(PLANTED_SHARE * images)
    originals = [digitize(photograph(rng), rng) for _ in range(images - planted)]
    pictures, pairs = list(originals), {}
    for number in range(planted):
        name = CHANGES[number % len(CHANGES)]
        pairs[number, len(pictures)] = name
        pictures.append(change(originals[number], name, rng))
    return np.stack([thumbnail(np.ascontiguousarray(picture), size) for picture in pictures]), pairs


# --- the table -------------------------------------------------------------------------------------------


def judge(search: SiblingSearch, planted: dict[tuple[int, int], str]) -> tuple[list[str], int]:
    """The changes whose pairs were missed, and how many images were joined to another object."""
    pairs = set(zip(search.pairs["i"], search.pairs["j"], strict=True))
    missed = [name for pair, name in planted.items() if pair not in pairs]
    joined = {image for pair in pairs - planted.keys() for image in pair}
    return missed, len(joined)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    settings, rows = DuplicateConfig(), []
    for make in tqdm(KINDS, "kinds", leave=False, disable=None):
        for seed in range(args.seeds):
            thumbnails, planted = generate(make, args.images, settings.thumbnail_size, seed)
            started = time.perf_counter()
            search = search_siblings(thumbnails, settings)
            seconds = time.perf_counter() - started
            missed, joined = judge(search, planted)
            rows.append(
                {
                    "kind": make.__name__.replace("_", " "),
                    "images": len(thumbnails),
                    "planted": len(planted),
                    "missed": len(missed),
                    "joined wrongly": joined,
                    "threshold": search.threshold,
                    "seconds": seconds,
                    "missed changes": ", ".join(missed),
                }
            )
    table = pd.DataFrame(rows).groupby("kind", sort=False)
    sums = table[["images", "planted", "missed", "joined wrongly", "seconds"]].sum()
    sums.insert(2, "recall", 1 - sums["missed"] / sums["planted"])
    sums["thresholds"] = table["threshold"].agg(lambda values: ", ".join(f"{v:.3f}" for v in values))
    sums["missed changes"] = table["missed changes"].agg(lambda names: ", ".join(filter(None, names)))
    print(sums.round(3).to_string())
    total = sums[["images", "planted", "missed", "joined wrongly"]].sum()
    print(f"recall {1 - total['missed'] / total['planted']:.4f} of {total['planted']} planted siblings;")
    print(f"{total['joined wrongly']} of {total['images']} images joined to another object")


if __name__ == "__main__":
    main()
