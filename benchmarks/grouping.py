"""Time, memory, recall and precision of the sibling search on synthetic thumbnails with planted siblings.

python benchmarks/grouping.py --images 50000
"""

import argparse
import os
import platform
import resource
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config_schema import DuplicateConfig  # noqa: E402
from defects.data.duplicates import search_siblings  # noqa: E402

SIZE = DuplicateConfig().thumbnail_size
MARGIN = round(0.04 * SIZE)  # pixels a sibling may be shifted, of SIZE


def texture(rng: np.random.Generator) -> np.ndarray:
    """Random phases under a random power law and anisotropy: float32 [S + 2 margins, S + 2 margins], 0..1."""
    side = SIZE + 2 * MARGIN
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    stretch, decay = np.exp(rng.uniform(-0.7, 0.7)), rng.uniform(0.5, 1.5)
    noise = np.fft.rfft2(rng.standard_normal((side, side)))
    picture = np.fft.irfft2(noise / (np.hypot(fx * stretch, fy / stretch) + 0.02) ** decay, s=(side, side))
    return cv2.normalize(picture, None, 0, 1, cv2.NORM_MINMAX).astype(np.float32)


def photograph(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S]: another exposure, gamma, shift, flip or quarter turn, noise, JPEG compression."""
    y, x = rng.integers(0, 2 * MARGIN, 2, endpoint=True) if rng.random() < 0.8 else (MARGIN, MARGIN)
    view = scene[y : y + SIZE, x : x + SIZE].clip(0) ** rng.uniform(0.6, 1.6) * rng.uniform(90, 250)
    view = np.rot90(view, rng.integers(4))
    view = view[:, ::-1] if rng.random() < 0.5 else view
    noisy = np.clip(view + rng.normal(0, 1.5, view.shape), 0, 255).astype(np.uint8)
    _, code = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 95))])
    return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


def generate(images: int, share: float, seed: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Thumbnails uint8 [N, S, S], of which `share` show the scene of another one, and those pairs."""
    rng, pictures, pairs = np.random.default_rng(seed), [], set()
    with tqdm(total=images, desc="generating", leave=False, disable=None) as progress:
        while len(pictures) < images:
            scene = texture(rng)
            count = 2 if rng.random() < share / (1 - share) and len(pictures) + 2 <= images else 1
            if count == 2:
                pairs.add((len(pictures), len(pictures) + 1))
            pictures += [photograph(scene, rng) for _ in range(count)]
            progress.update(count)
    return np.stack(pictures), pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--siblings", type=float, default=0.2, help="share of images with an earlier sibling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    thumbnails, planted = generate(args.images, args.siblings, args.seed)
    started, busy = time.perf_counter(), time.process_time()
    pairs = search_siblings(thumbnails, DuplicateConfig()).pairs
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    found = set(zip(pairs["i"], pairs["j"], strict=True))
    right = pairs[[pair in planted for pair in zip(pairs["i"], pairs["j"], strict=True)]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"machine: {platform.machine()}, {len(os.sched_getaffinity(0))} cores; {args.images} images")
    print(f"{seconds:.0f} s ({busy:.0f} s of processor time), peak memory {peak:.2f} GiB")
    print(f"planted {len(planted)} pairs, found {len(right)}: recall {len(right) / max(len(planted), 1):.4f}")
    print(f"false pairs: {len(found - planted)}")


if __name__ == "__main__":
    main()
