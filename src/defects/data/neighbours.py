"""Images with similar power spectra: of each image the nearest ones, under any flip or quarter turn.

Up to MOST_COMPARED images all pairs are compared. Of more, faiss divides the spectra among cells by k-means,
and an image is compared with those of the nearest cells alone (the inverted file of Jégou, Douze and Schmid,
"Product quantization for nearest neighbor search", 2011). The spectra enter the index in the order of hashes
of the pictures, so that the cells do not depend on the order of the images.
"""

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from defects.data.registration import FLIPS, FREQUENCIES, SPECTRAL_CODES, flip_pictures
from defects.versions import check_versions

if TYPE_CHECKING:
    import faiss

BLOCK = 512  # images compared at once
TILE = 2**13  # with so many others: 16 MB of scores
MOST_COMPARED = 2**15  # images; an index of so many would save a minute
CELL_IMAGES = 256  # in a cell, on average
CELLS_SEARCHED = 32  # the nearest ones
TRAINING_IMAGES = 40  # for each cell, that k-means takes; faiss asks for 39


class NeighbourSearch:
    """Halves of power spectra [N, H, F], as registration.half_spectrum makes them, and an index of many."""

    def __init__(self, spectra: torch.Tensor, contents: np.ndarray):
        """`contents` [N] are hashes of the pictures."""
        self.spectra = spectra
        self.order = np.argsort(contents, kind="stable")
        self.index = None
        if len(spectra) > MOST_COMPARED:
            self.index = _build_index(spectra, self.order)

    def find_nearest(self, count: int, queries: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of each image the `count` nearest others under any flip, nearest first, and codes of these flips.

        The spectra are compared with those of `queries`, by default themselves. int32 and int8 [N, count];
        fewer columns where there are fewer images. One image may be near under several flips.
        """
        queries = self.spectra if queries is None else queries
        images = len(self.spectra)
        count = min(count, len(SPECTRAL_CODES) * max(images - 1, 0))
        places = np.empty((images, count), np.int32)
        codes = np.empty((images, count), np.int8)
        for start in tqdm(range(0, images, BLOCK), "proposing pairs", leave=False, disable=None):
            rows = np.arange(start, min(start + BLOCK, images))
            flipped = _flip_spectra(queries[rows])
            if self.index is None:
                nearest = _compare_all(self.spectra, flipped, torch.from_numpy(rows), count)
            else:
                nearest = self._search_index(flipped, rows, count)
            places[rows], codes[rows] = np.divmod(nearest, len(FLIPS))
        return places, codes

    def _search_index(self, flipped: torch.Tensor, rows: np.ndarray, count: int) -> np.ndarray:
        """int [B, count]: image * 8 + code of the flip. See _compare_all."""
        distances = []
        nearest = []
        for number, code in enumerate(SPECTRAL_CODES):
            # One more, since an image is the nearest to itself.
            distance, entry = self.index.search(_as_vectors(flipped[number]), count + 1)
            image = self.order[entry]
            # faiss fills up with -1 where the cells hold too few. Any image will do: its comparison fails.
            is_none = (entry < 0) | (image == rows[:, None])
            distances.append(np.where(is_none, np.inf, distance))
            image = np.where(is_none, (rows[:, None] + 1) % len(self.order), image)
            nearest.append(image * len(FLIPS) + code)
        order = np.argsort(np.concatenate(distances, axis=1), axis=1, kind="stable")[:, :count]
        return np.take_along_axis(np.concatenate(nearest, axis=1), order, axis=1)


def propose_pairs(nearest: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Distinct i < j, code of images and their neighbours: int [P, 3]."""
    images, count = nearest.shape
    first = np.repeat(np.arange(images), count)
    second = nearest.ravel().astype(np.int64)
    pair = np.minimum(first, second) * images + np.maximum(first, second)
    pairs, codes = np.divmod(np.unique(pair * len(FLIPS) + codes.ravel()), len(FLIPS))
    return np.stack([*np.divmod(pairs, max(images, 1)), codes], axis=1)


def _flip_spectra(halves: torch.Tensor) -> torch.Tensor:
    """[B, H, F] -> [4, B, H, F]: under each of SPECTRAL_CODES."""
    # The other half-plane of a real picture's spectrum is the same, rotated.
    spectra = torch.cat([halves, halves[:, :FREQUENCIES].flip(1, 2)], 1)
    return torch.stack([flip_pictures(spectra, code)[:, : FREQUENCIES + 1] for code in SPECTRAL_CODES])


def _compare_all(spectra: torch.Tensor, flipped: torch.Tensor, rows: torch.Tensor, count: int) -> np.ndarray:
    """The images most like any flip [4, B, H, F] of those in `rows` [B]: image * 8 + code, int [B, count].

    Others are compared TILE by TILE, so that memory does not grow with their number.
    """
    best = torch.empty(len(rows), 0)
    nearest = torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(spectra), TILE):
        columns = spectra[start : start + TILE].flatten(1).T
        for number, code in enumerate(SPECTRAL_CODES):
            scores = flipped[number].flatten(1) @ columns
            own = (rows >= start) & (rows < start + scores.shape[1])
            scores[own, rows[own] - start] = -torch.inf  # an image is no sibling of itself
            values, indices = scores.topk(min(count, scores.shape[1]))
            best = torch.cat([best, values], 1)
            nearest = torch.cat([nearest, (indices + start) * len(FLIPS) + code], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :count]
        best = best.gather(1, order)
        nearest = nearest.gather(1, order)
    return nearest.numpy()


def _build_index(spectra: torch.Tensor, order: np.ndarray) -> "faiss.IndexIVFFlat | None":
    """The spectra in this order; None, and a note, without faiss."""
    try:
        import faiss  # needed for very many images only
    except ImportError:
        print(
            f"note: all pairs of {len(order)} images are compared, which takes hours for a million; "
            "pip install faiss-cpu makes it minutes",
            file=sys.stderr,
        )
        return None
    check_versions(["faiss-cpu"])
    cells = len(order) // CELL_IMAGES
    values = spectra[0].numel()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(values), values, cells)
    index.nprobe = CELLS_SEARCHED
    index.train(_as_vectors(spectra[order[: TRAINING_IMAGES * cells]]))
    for start in range(0, len(order), TILE):
        index.add(_as_vectors(spectra[order[start : start + TILE]]))
    return index


def _as_vectors(halves: torch.Tensor) -> np.ndarray:
    """[B, H, F] -> float32 [B, H * F] of unit length: products are those of whole spectra."""
    weights = torch.ones(FREQUENCIES + 1, 1)
    weights[:FREQUENCIES] = 2**0.5  # rows that the other half-plane repeats
    return (halves * weights).flatten(1).numpy()
