"""Photographs of the same object, which must stay in one fold.

Power spectra, which a shift leaves alone, propose candidate pairs; correlation of the registered,
band-passed thumbnails confirms them (registration: the peak of the cross-correlation, as in Kuglin and
Hines, "The phase correlation image alignment method", 1975, without their whitening of the spectrum).
Exposure drops out by dividing each neighbourhood by its own contrast, and so do flat and black areas.
"""

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from defects.config_data import DuplicateConfig

# How the second picture of a pair must be turned to lie on the first: transposed or not, then mirrored
# along these axes of [N, S, S]. Half a turn more makes code ^ 3 of a code and leaves the power spectrum as
# it is: four codes suffice to propose. (The two quarter turns, 5 and 6, are also each other's inverse.)
MIRRORS = {"none": (), "horizontal": (2,), "vertical": (1,), "both": (1, 2)}
FLIPS = [*MIRRORS, *(f"transposed+{name}" for name in MIRRORS)]
SPECTRAL_CODES = [0, 1, 4, 5]
COLUMNS = ["i", "j", "correlation", "flip"]

# The band of texture compared, as Gaussian widths in parts of the thumbnail's side: its fine end makes
# shifts below a pixel and crops some per cent apart harmless, its coarse end removes lighting.
FINE, COARSE = 1 / 80, 1 / 24
FREQUENCIES = 11  # cycles per side kept of the power spectrum, in each direction
NOISE = 1.0  # grey levels: sensor and JPEG noise of flat areas, not to be amplified to texture
BLOCK = 512  # images compared with all others at once: 100 MB of scores for 50,000 images
PAIR_BLOCK = 1024  # pairs correlated at once: their transforms should stay near the processor


def thumbnail(image: np.ndarray, size: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] or grey uint8 [H, W] -> grey uint8 [size, size], whatever the aspect ratio."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)


def find_siblings(thumbnails: np.ndarray, settings: DuplicateConfig) -> pd.DataFrame:
    """Pairs of uint8 [N, S, S] that show the same object: positions i < j, correlation, flip between them.

    Deterministic and, up to rounding, independent of the order of the images. Pictures without texture
    are paired only if their thumbnails are identical, and one-coloured ones never.
    """
    details, spectra, usable = _features(thumbnails, settings.min_texture)
    pairs = _propose(spectra, settings.neighbours)
    pairs = pd.concat([pairs, pairs.assign(code=pairs["code"] ^ 3)], ignore_index=True)
    pairs["correlation"] = _correlate(details, pairs, round(settings.max_shift * thumbnails.shape[1]))
    pairs = pairs[pairs["correlation"] >= settings.min_correlation]
    flips = np.array(FLIPS)[pairs["code"]]
    pairs = pairs.assign(i=usable[pairs["i"]], j=usable[pairs["j"]], flip=flips)
    found = pd.concat([_identical(thumbnails), pairs])[COLUMNS]
    best = found.sort_values(["i", "j", "correlation"], ascending=[True, True, False], kind="stable")
    return best.drop_duplicates(["i", "j"], ignore_index=True)


def group_ids(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Connected components of `n` images under the pairs (i, j): int [n], numbered by first occurrence."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs["i"], pairs["j"])), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    return pd.factorize(component)[0]


def _features(thumbnails: np.ndarray, min_texture: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Of the K pictures with texture: details [K, S, S], spectra [K, F, F] (unit norm), positions [K]."""
    details = np.empty(thumbnails.shape, np.float16)  # half the memory of what takes most of it
    spectra = np.empty((len(thumbnails), 2 * FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32)
    usable = []
    for position, picture in enumerate(tqdm(thumbnails, "describing images", leave=False, disable=None)):
        texture = _texture(picture)
        if np.square(texture).mean() < min_texture:
            continue
        details[len(usable)] = _unit(texture)
        spectra[len(usable)] = _unit(_spectrum(texture))
        usable.append(position)
    count = len(usable)
    return torch.from_numpy(details[:count]), torch.from_numpy(spectra[:count]), np.array(usable, np.int64)


def _texture(picture: np.ndarray) -> np.ndarray:
    """Band-passed uint8 [S, S] at local contrast 1 (0 where flat): float32, its mean square below about 1."""
    side, picture = len(picture), picture.astype(np.float32)
    band = _blur(picture, FINE * side) - _blur(picture, COARSE * side)
    band /= np.sqrt(_blur(band * band, COARSE * side) + NOISE**2)
    # Grinding marks, part edges and lamps give different objects of one line the same straight streaks.
    band -= band.mean(axis=0, keepdims=True)
    band -= band.mean(axis=1, keepdims=True)
    taper = np.minimum(1, 4 * np.hanning(side + 2)[1:-1]).astype(np.float32)  # no jump where shifts wrap
    return band * np.outer(taper, taper)


def _spectrum(texture: np.ndarray) -> np.ndarray:
    """Roots of low-frequency amplitudes of [S, S], less what is smooth (one material shares it): [F, F]."""
    middle = len(texture) // 2
    kept = slice(middle - FREQUENCIES, middle + FREQUENCIES + 1)
    amplitude = np.sqrt(np.abs(np.fft.fftshift(np.fft.fft2(texture)))[kept, kept]).astype(np.float32)
    return _blur(amplitude, 0.5) - _blur(amplitude, 2)


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def _unit(array: np.ndarray) -> np.ndarray:
    return array / max(np.linalg.norm(array), np.finfo(np.float32).tiny)


def _propose(spectra: torch.Tensor, neighbours: int) -> pd.DataFrame:
    """For each image its `neighbours` nearest others under any turn: distinct rows i < j, code."""
    n, found = len(spectra), [np.empty((0, 3), np.int64)]
    columns = _half(spectra).T.contiguous()
    scores = torch.empty(BLOCK, n)  # nothing larger than this is ever held
    for start in tqdm(range(0, n, BLOCK), "proposing pairs", leave=False, disable=None):
        rows = torch.arange(start, min(start + BLOCK, n))
        nearest, code = _nearest(spectra[rows], columns, rows, neighbours, scores[: len(rows)])
        itself = rows[:, None].expand_as(nearest)
        triples = torch.stack([torch.minimum(itself, nearest), torch.maximum(itself, nearest), code], 2)
        found.append(triples.reshape(-1, 3).numpy())
    return pd.DataFrame(np.concatenate(found), columns=["i", "j", "code"]).drop_duplicates(ignore_index=True)


def _nearest(
    block: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor, neighbours: int, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [D, N] most like any turn of [B, F, F], and the code of that turn: two int [B, neighbours].

    `scores` [B, N] is working memory, `rows` [B] are the block's own columns.
    """
    values, indices = [], []
    for code in SPECTRAL_CODES:
        torch.mm(_half(_turn(block, code)), columns, out=scores)
        scores[torch.arange(len(rows)), rows] = -torch.inf  # an image is no sibling of itself
        best = scores.topk(min(neighbours, columns.shape[1] - 1))
        values.append(best.values)
        indices.append(best.indices)
    codes = torch.tensor(SPECTRAL_CODES).repeat_interleave(values[0].shape[1]).expand(len(rows), -1)
    order = torch.cat(values, 1).argsort(dim=1, descending=True, stable=True)[:, :neighbours]
    return torch.cat(indices, 1).gather(1, order), codes.gather(1, order)


def _half(spectra: torch.Tensor) -> torch.Tensor:
    """[N, F, F] -> [N, D]: the other half-plane of a real picture's spectrum is the same."""
    return spectra[:, : FREQUENCIES + 1].flatten(1)


def _turn(pictures: torch.Tensor, code: int) -> torch.Tensor:
    transposed, mirror = divmod(code, len(MIRRORS))
    return (pictures.mT if transposed else pictures).flip(list(MIRRORS.values())[mirror])


def _correlate(details: torch.Tensor, pairs: pd.DataFrame, reach: int) -> np.ndarray:
    """Highest circular cross-correlation within `reach` pixels, by the convolution theorem: float32 [pairs].

    What a shift moves out of the frame counts as different: 4 % both ways cost about 0.08.
    """
    one, other, codes = torch.tensor(pairs[["i", "j", "code"]].to_numpy(copy=True)).T
    best = torch.zeros(len(pairs))
    for start in tqdm(range(0, len(pairs), PAIR_BLOCK), "confirming pairs", leave=False, disable=None):
        for code in codes[start : start + PAIR_BLOCK].unique().tolist():
            rows = start + torch.nonzero(codes[start : start + PAIR_BLOCK] == code).flatten()
            still = torch.fft.rfft2(details[one[rows]].float())
            turned = torch.fft.rfft2(_turn(details[other[rows]].float(), code))
            shifts = torch.fft.irfft2(still.conj() * turned, s=details.shape[1:]).roll((reach, reach), (1, 2))
            best[rows] = shifts[:, : 2 * reach + 1, : 2 * reach + 1].amax((1, 2))
    return best.numpy()


def _identical(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of the first and each later copy of the same pixels, unless these are all one colour."""
    content = pd.Series(
        [picture.tobytes() if np.ptp(picture) else None for picture in thumbnails], dtype=object
    )
    position = content.dropna().index.to_series()
    first = position.groupby(content.dropna()).transform("first")
    pairs = pd.DataFrame({"i": first, "j": position})[first != position]
    return pairs.assign(correlation=np.float32(1), flip="none")
