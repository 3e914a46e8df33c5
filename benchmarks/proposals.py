"""Time, memory and recall of the pairs that are proposed among very many images, on made-up power spectra.

The spectra spread over some 70 directions like those of benchmarks/grouping.py, siblings with correlations of
0.76 to 0.98 under any flip. `--all-pairs` compares all of them as well. The last line of the table is fitted.

python benchmarks/proposals.py --images 50000 100000 200000
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config_schema import DuplicateConfig  # noqa: E402
from defects.data import neighbours  # noqa: E402
from defects.data.registration import FREQUENCIES, SPECTRAL_CODES, flip_pictures  # noqa: E402

DIRECTIONS = 70  # that spectra of different textures spread over, about
SIBLING_SHARE = 0.1  # of the images
CORRELATIONS = (0.76, 0.98)  # of spectra of siblings
NEIGHBOURS = DuplicateConfig().neighbours
MILLION = 1_000_000  # images


def make_spectra(images: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Halves of spectra [N, H, F], and the pairs of siblings among them, int [P, 2]."""
    rng = np.random.default_rng(seed)
    siblings = round(SIBLING_SHARE * images)
    values = rng.standard_normal((images, DIRECTIONS), dtype=np.float32)
    pairs = np.stack([np.arange(siblings), np.arange(images - siblings, images)], axis=1)
    correlation = rng.uniform(*CORRELATIONS, (siblings, 1)).astype(np.float32)
    own = values[pairs[:, 1]]
    values[pairs[:, 1]] = correlation * values[pairs[:, 0]] + np.sqrt(1 - correlation**2) * own
    side = 2 * FREQUENCIES + 1
    mixing = rng.standard_normal((DIRECTIONS, side * side), dtype=np.float32)
    # A real picture's spectrum is the same when it is rotated by half a turn.
    mixing = mixing + mixing[:, ::-1]
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    halves = torch.empty(images, FREQUENCIES + 1, side)
    codes = rng.choice(SPECTRAL_CODES, images)
    for start in range(0, images, neighbours.TILE):
        rows = slice(start, start + neighbours.TILE)
        spectra = torch.from_numpy(values[rows] @ mixing)
        spectra /= spectra.norm(dim=1, keepdim=True)
        spectra = spectra.view(-1, side, side)
        for code in SPECTRAL_CODES:
            is_code = torch.from_numpy(codes[rows] == code)
            halves[rows][is_code] = flip_pictures(spectra[is_code], code)[:, : FREQUENCIES + 1]
    return halves, pairs


def measure(spectra: torch.Tensor, planted: np.ndarray, most_compared: int) -> dict[str, float]:
    """Seconds of processor time, peak memory in MB, and the share of planted pairs that are proposed."""
    neighbours.MOST_COMPARED = most_compared
    contents = np.array([f"{place:08d}" for place in range(len(spectra))], dtype=object)
    started = time.process_time()
    search = neighbours.NeighbourSearch(spectra, contents)
    index_seconds = time.process_time() - started
    pairs = neighbours.propose_pairs(*search.find_nearest(NEIGHBOURS))
    seconds = time.process_time() - started
    proposed = np.unique(pairs[:, 0] * len(spectra) + pairs[:, 1])
    recall = np.isin(planted[:, 0] * len(spectra) + planted[:, 1], proposed).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"index, s": index_seconds, "seconds": seconds, "peak, MB": peak, "recall": recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--all-pairs", action="store_true", help="compare all pairs as well")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for images in args.images:
        spectra, planted = make_spectra(images, args.seed)
        rows.append({"images": images, "by": "index"} | measure(spectra, planted, 0))
        if args.all_pairs:
            rows.append({"images": images, "by": "all pairs"} | measure(spectra, planted, images))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    indexed = table[table["by"] == "index"]
    if len(indexed) > 2:
        # A part in proportion to the images, and one, of the cells, in proportion to their square.
        terms = np.stack([indexed["images"], indexed["images"].astype(float) ** 2], axis=1)
        fitted = np.linalg.lstsq(terms, indexed["seconds"], rcond=None)[0]
        slope, start = np.polyfit(indexed["images"], indexed["peak, MB"], 1)
        million = {
            "images": MILLION,
            "by": "fitted",
            "seconds": fitted @ [MILLION, float(MILLION) ** 2],
            "peak, MB": start + slope * MILLION,
        }
        table = pd.concat([table, pd.DataFrame([million])], ignore_index=True)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
