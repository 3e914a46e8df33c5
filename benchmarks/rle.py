"""Time of encoding and decoding run-length masks of the Severstal size.

python benchmarks/rle.py --masks 10000
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.data import rle  # noqa: E402

SHAPE = (256, 1600)
DISTINCT = 50  # masks that are drawn; they are used in turn


def draw(rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W]: blotches with ragged edges on 2 to 20 % of the strip, some hundred runs."""
    noise = cv2.GaussianBlur(rng.standard_normal(SHAPE, np.float32), (0, 0), 12)
    return (noise > np.quantile(noise, 1 - rng.uniform(0.02, 0.2))).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--masks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(args.seed)
    masks = [draw(rng) for _ in range(DISTINCT)]
    encoding = decoding = values = 0
    for i in tqdm(range(args.masks), leave=False, disable=None):
        mask, started = masks[i % DISTINCT], time.process_time()
        runs = rle.encode(mask)
        encoded = time.process_time()
        decoded = rle.decode(runs, SHAPE)
        encoding, decoding = encoding + encoded - started, decoding + time.process_time() - encoded
        values += len(runs.split())
        assert np.array_equal(decoded, mask)
    print(f"{platform.machine()}, one thread; {args.masks} masks, {values / 2 / args.masks:.0f} runs each")
    print(f"encoding {encoding:.1f} s, decoding {decoding:.1f} s of processor time")


if __name__ == "__main__":
    main()
