"""Photographs of the same object, which must stay in one fold.

Power spectra, which a shift leaves alone, propose candidate pairs; correlation of the registered,
band-passed thumbnails confirms them (registration: the peak of the cross-correlation, as in Kuglin and
Hines, "The phase correlation image alignment method", 1975, without their whitening of the spectrum).
Exposure drops out by dividing each neighbourhood by its own contrast, and so do flat and black areas.
"""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from defects.config_data import DuplicateConfig
from defects.data.many import room

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
BLOCK, TILE = 512, 2**13  # images compared with so many others at once: 16 MB of scores
PAIR_BLOCK = 1024  # pairs correlated at once: their transforms should stay near the processor


def thumbnail(image: np.ndarray, size: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] or grey uint8 [H, W] -> grey uint8 [size, size], whatever the aspect ratio."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)


def find_siblings(
    thumbnails: np.ndarray, settings: DuplicateConfig, folder: Path | None = None
) -> pd.DataFrame:
    """Pairs of uint8 [N, S, S] that show the same object: positions i < j, correlation, flip between them.

    Deterministic and, up to rounding, independent of the order of the images. Pictures without texture
    are paired only if their thumbnails are identical, and one-coloured ones never. What is known of very many
    images lies in files of `folder` meanwhile.
    """
    details, spectra, usable = _features(thumbnails, settings.min_texture, folder)
    reach = round(settings.max_shift * thumbnails.shape[1])
    pairs = _confirm(details, _propose(spectra, settings.neighbours), reach, settings.min_correlation)
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


def _features(
    thumbnails: np.ndarray, min_texture: float, folder: Path | None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Of the K pictures with texture: details [K, S, S], halves of spectra [K, H, F], positions [K]."""
    details = room(thumbnails.shape, np.float16, folder)  # half the memory of what takes most of it
    spectra = room((len(thumbnails), FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32, folder)
    usable = []
    for position, picture in enumerate(tqdm(thumbnails, "describing images", leave=False, disable=None)):
        texture = _texture(picture)
        if np.square(texture).mean() < min_texture:
            continue
        details[len(usable)] = _unit(texture)
        spectra[len(usable)] = _unit(_spectrum(texture))[: FREQUENCIES + 1]
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


def _propose(spectra: torch.Tensor, neighbours: int) -> np.ndarray:
    """For each image its `neighbours` nearest others under any turn: distinct i < j, code; int [P, 3]."""
    n, found = len(spectra), [np.empty(0, np.int64)]
    for start in tqdm(range(0, n, BLOCK), "proposing pairs", leave=False, disable=None):
        rows = torch.arange(start, min(start + BLOCK, n))[:, None]
        nearest, code = _nearest(spectra, rows, min(neighbours, n - 1))
        pair = torch.minimum(rows, nearest) * n + torch.maximum(rows, nearest)
        found.append((pair * len(FLIPS) + code).flatten().numpy())
    pairs, codes = np.divmod(np.unique(np.concatenate(found)), len(FLIPS))
    return np.stack([*np.divmod(pairs, max(n, 1)), codes], axis=1)


def _nearest(spectra: torch.Tensor, rows: torch.Tensor, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images most like any turn of those in `rows` [B, 1], and the codes of these turns: int [B, K].

    Others are looked at TILE by TILE, so that memory does not grow with their number.
    """
    block = _whole(spectra[rows[:, 0]])
    turned = torch.stack([_turn(block, code)[:, : FREQUENCIES + 1] for code in SPECTRAL_CODES])
    best, places = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(spectra), TILE):
        columns = spectra[start : start + TILE].flatten(1).T
        for number, code in enumerate(SPECTRAL_CODES):
            scores = turned[number].flatten(1) @ columns
            own = (rows[:, 0] >= start) & (rows[:, 0] < start + scores.shape[1])
            scores[own, rows[own, 0] - start] = -torch.inf  # an image is no sibling of itself
            values, indices = scores.topk(min(neighbours, scores.shape[1]))
            best = torch.cat([best, values], 1)
            places = torch.cat([places, (indices + start) * len(FLIPS) + code], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :neighbours]
        best, places = best.gather(1, order), places.gather(1, order)
    return places // len(FLIPS), places % len(FLIPS)


def _whole(halves: torch.Tensor) -> torch.Tensor:
    """[N, H, F] -> [N, F, F]: the other half-plane of a real picture's spectrum is the same, turned."""
    return torch.cat([halves, halves[:, :FREQUENCIES].flip(1, 2)], 1)


def _turn(pictures: torch.Tensor, code: int) -> torch.Tensor:
    transposed, mirror = divmod(code, len(MIRRORS))
    return (pictures.mT if transposed else pictures).flip(list(MIRRORS.values())[mirror])


def _confirm(details: torch.Tensor, pairs: np.ndarray, reach: int, least: float) -> pd.DataFrame:
    """Those of the proposed pairs, or of the same half a turn on, that correlate by `least` or more.

    Columns i, j, code, correlation (float32).
    """
    found = [np.empty((0, 4))]
    for start in tqdm(range(0, len(pairs), PAIR_BLOCK), "confirming pairs", leave=False, disable=None):
        block = pairs[start : start + PAIR_BLOCK]
        for code in np.unique(block[:, 2]):
            one, other, codes = block[block[:, 2] == code].T
            for half_turn, best in enumerate(_correlate(details, one, other, code, reach)):
                kept = best >= least
                found.append(np.stack([one, other, codes ^ 3 * half_turn, best], 1)[kept])
    table = pd.DataFrame(np.concatenate(found), columns=["i", "j", "code", "correlation"])
    return table.astype({"i": int, "j": int, "code": int, "correlation": np.float32})


def _correlate(
    details: torch.Tensor, one: np.ndarray, other: np.ndarray, code: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Highest circular cross-correlation within `reach` pixels, by the convolution theorem: float32 [pairs].

    With the second picture turned by `code`, and by half a turn more: that conjugates its transform and moves
    it by a pixel. What a shift moves out of the frame counts as different: 4 % both ways cost about 0.08.
    """
    several, again = np.unique(one, return_inverse=True)
    still = torch.fft.rfft2(details[several].float())[again]
    turned = torch.fft.rfft2(_turn(details[other].float(), code))
    near = torch.arange(-reach, reach + 1)
    as_turned = _at_shifts(still.conj() * turned, near)
    on_head = _at_shifts((still * turned).conj(), near + 1)
    return as_turned.amax((1, 2)).numpy(), on_head.amax((1, 2)).numpy()


def _at_shifts(spectrum: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """torch.fft.irfft2 of [B, S, S // 2 + 1] at these shifts alone, [B, R, R]; several times faster."""
    side, half = spectrum.shape[1:]
    turns = 2j * np.pi / side * shifts[:, None]
    rows, columns = (torch.exp(turns * torch.arange(count)).to(spectrum.dtype) for count in (side, half))
    columns[:, 1 : (side + 1) // 2] *= 2  # those of negative frequencies, which rfft2 leaves out
    return (rows @ spectrum @ columns.T).real / side**2


def _identical(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of the first and each later copy of the same pixels, unless these are all one colour."""
    content = [hashlib.sha256(picture).hexdigest() if np.ptp(picture) else None for picture in thumbnails]
    content = pd.Series(content, dtype=object).dropna()
    position = content.index.to_series()
    first = position.groupby(content).transform("first")
    pairs = pd.DataFrame({"i": first, "j": position})[first != position]
    return pairs.assign(correlation=np.float32(1), flip="none")
