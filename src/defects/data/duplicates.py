"""Photographs of the same object, which must stay in one fold.

Power spectra, which a shift leaves alone, propose pairs; each is registered and its agreement measured
(registration.py). Photographs of one design of part agree as well, so a pair is taken for one object where it
agrees more than different objects of this very data set do (different.py).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from defects.config_data import DuplicateConfig
from defects.data import different, registration
from defects.data.bounded_memory import allocate_array, in_threads
from defects.data.different import Threshold
from defects.data.registration import FLIPS, blur, flip_pictures

SIDE = 64  # pixels, of the pictures that propose pairs and that registration starts from
SPECTRAL_CODES = [0, 1, 4, 5]  # half a turn leaves a power spectrum as it is: four of the eight suffice
FREQUENCIES = 11  # cycles per side kept of the power spectrum, in each direction
ZOOMS = [(y, x) for y in (1.0, 1.05, 1.1) for x in (1.0, 1.05, 1.1) if y * x > 1]
COARSE_NOISE, NOISE = 1.0, 2.0  # grey levels that count as flat, at SIDE and at the size compared
LEAST_COARSE = 0.25  # correlation at the best shift; with less a pair is not registered
COARSE_MARGIN = 0.1  # other flips of a pair are registered too if they correlate within this of the best
SAME_PICTURE = np.arctanh(0.9995)  # agreement of copies of one picture
BLOCK, TILE = 512, 2**13  # images compared with so many others at once: 16 MB of scores
PAIR_BLOCK = 1024  # pairs correlated at once: their transforms should stay near the processor
CACHED = 2048  # textures kept, of 64 KB each
LARGEST_GROUP = 0.25  # of the images; larger ones tell a common design
MOST_LINKS = 16  # pairs looked at before two groups are joined


def thumbnail(image: np.ndarray, size: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] or grey uint8 [H, W] -> grey uint8 [size, size], whatever the aspect ratio."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class SiblingSearch:
    """What was found and what it was judged by; all correlations are those of registered pictures."""

    pairs: pd.DataFrame  # i, j, correlation, flip: positions i < j of images that show one object
    threshold: float  # correlation from which on a pair is taken for one object
    chance_level: float  # correlation that different objects of the set hardly exceed
    kind: str  # of the threshold: apart, alike, few
    compared: pd.DataFrame  # i, j, correlation, flip of the pairs that were looked at
    different: np.ndarray  # correlations of a sample of pairs of different objects


def search_siblings(
    thumbnails: np.ndarray,
    settings: DuplicateConfig,
    folder: Path | None = None,
    aspects: np.ndarray | None = None,
) -> SiblingSearch:
    """Pairs of uint8 [N, S, S] that show the same object: positions i < j, correlation, flip between them.

    `aspects` [N] are widths over heights of the images. Deterministic and, up to rounding, independent of the
    order of the images. Pictures without texture are paired only if their thumbnails are identical, and
    one-coloured ones never. What is known of very many images lies in files of `folder` meanwhile.
    """
    details, spectra, usable = _features(thumbnails, settings.min_texture, folder)
    contents = np.array([hashlib.sha256(picture).hexdigest() for picture in thumbnails], dtype=object)
    aspects = np.ones(len(thumbnails)) if aspects is None else aspects
    comparison = PairComparison(thumbnails, details, usable, aspects, round(settings.max_shift * SIDE))
    nearest, codes = _nearest_images(spectra, settings.neighbours + different.PARTNERS // 2)
    sample = different.sample_pairs(nearest, contents[usable], settings.neighbours)
    others = comparison.measure_at_any_angle(sample)
    proposed = _proposals(nearest[:, : settings.neighbours], codes[:, : settings.neighbours])
    if different.is_alike(others):
        # Among pictures of one design the spectrum of a cropped one is nearer to others than to its original.
        zoomed = [_proposals(*_nearest_images(spectra, 1, comparison.zoomed_spectra(zoom))) for zoom in ZOOMS]
        proposed = np.unique(np.concatenate([proposed, *zoomed]), axis=0)
    compared = comparison.measure(comparison.coarse_starts(proposed, comparison.max_shift))
    threshold, alike = _decide(others, compared, proposed, len(usable), settings.min_correlation)
    least_link = min(threshold.chance_level, SAME_PICTURE)
    alike = _without_chains(alike, compared, least_link, contents[usable], comparison)
    alike = _in_images(alike, usable)
    best = pd.concat([_identical(thumbnails, contents), alike])
    best = best.sort_values(["i", "j", "correlation"], ascending=[True, True, False], kind="stable")
    return SiblingSearch(
        pairs=best.drop_duplicates(["i", "j"], ignore_index=True),
        threshold=float(np.tanh(threshold.agreement)),
        chance_level=float(np.tanh(threshold.chance_level)),
        kind=threshold.kind,
        compared=_in_images(compared, usable),
        different=np.tanh(others),
    )


def _in_images(table: pd.DataFrame, usable: np.ndarray) -> pd.DataFrame:
    """i, j, correlation, flip of rows whose positions count the usable pictures alone."""
    columns = {
        "i": usable[table["i"]],
        "j": usable[table["j"]],
        "correlation": np.tanh(table["agreement"]),
        "flip": np.array(FLIPS)[table["code"]],
    }
    return pd.DataFrame(columns).reset_index(drop=True)


def group_ids(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Connected components of `n` images under the pairs (i, j): int [n], numbered by first occurrence."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs["i"], pairs["j"])), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    return pd.factorize(component)[0]


# --- what is known of each picture -----------------------------------------------------------------------


def _features(
    thumbnails: np.ndarray, min_texture: float, folder: Path | None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Of the K pictures with texture: details [K, S, S], halves of spectra [K, H, F], positions [K]."""
    side = min(SIDE, thumbnails.shape[1])
    # In half precision: this array takes the most memory.
    details = allocate_array((len(thumbnails), side, side), np.float16, folder)
    spectra = allocate_array((len(thumbnails), FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32, folder)
    usable = []
    for position, picture in enumerate(tqdm(thumbnails, "describing images", leave=False, disable=None)):
        detail = _detail(thumbnail(picture, side))
        if np.square(detail).mean() < min_texture:
            continue
        details[len(usable)] = _unit(detail)
        spectra[len(usable)] = _unit(_spectrum(detail))[: FREQUENCIES + 1]
        usable.append(position)
    count = len(usable)
    return torch.from_numpy(details[:count]), torch.from_numpy(spectra[:count]), np.array(usable, np.int64)


def _detail(picture: np.ndarray) -> np.ndarray:
    """The texture of uint8 [S, S] without what runs along whole rows or columns, fading towards the edges."""
    side = len(picture)
    texture = registration.texture(picture, COARSE_NOISE)
    # Grinding marks, part edges and lamps give different objects of one line the same straight streaks.
    texture -= texture.mean(axis=0, keepdims=True)
    texture -= texture.mean(axis=1, keepdims=True)
    taper = np.minimum(1, 4 * np.hanning(side + 2)[1:-1]).astype(np.float32)  # no jump where shifts wrap
    return texture * np.outer(taper, taper)


def _spectrum(detail: np.ndarray) -> np.ndarray:
    """Roots of low-frequency amplitudes of [S, S], less what is smooth (one material shares it): [F, F]."""
    middle = len(detail) // 2
    kept = slice(middle - FREQUENCIES, middle + FREQUENCIES + 1)
    amplitude = np.sqrt(np.abs(np.fft.fftshift(np.fft.fft2(detail)))[kept, kept]).astype(np.float32)
    return blur(amplitude, 0.5) - blur(amplitude, 2)


def _unit(array: np.ndarray) -> np.ndarray:
    return array / max(np.linalg.norm(array), np.finfo(np.float32).tiny)


def _identical(thumbnails: np.ndarray, contents: np.ndarray) -> pd.DataFrame:
    """Pairs of the first and each later copy of the same pixels, unless these are all one colour."""
    has_content = [bool(np.ptp(picture)) for picture in thumbnails]
    content = pd.Series(contents, dtype=object)[has_content]
    position = content.index.to_series()
    first = position.groupby(content).transform("first")
    pairs = pd.DataFrame({"i": first, "j": position})[first != position]
    return pairs.assign(correlation=1.0, flip="none")


# --- which pairs are proposed ----------------------------------------------------------------------------


def _nearest_images(
    spectra: torch.Tensor, count: int, queries: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each image the `count` nearest others under any flip, nearest first, and the codes of these flips.

    The spectra are compared with those of `queries`, by default themselves. int32 and int8 [N, count]; fewer
    columns where there are fewer images. One image may be near under several flips.
    """
    queries = spectra if queries is None else queries
    images = len(spectra)
    count = min(count, len(SPECTRAL_CODES) * max(images - 1, 0))
    places, codes = np.empty((images, count), np.int32), np.empty((images, count), np.int8)
    for start in tqdm(range(0, images, BLOCK), "proposing pairs", leave=False, disable=None):
        rows = torch.arange(start, min(start + BLOCK, images))[:, None]
        places[start : start + BLOCK], codes[start : start + BLOCK] = _nearest(spectra, queries, rows, count)
    return places, codes


def _nearest(
    spectra: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images most like any flip of the queries in `rows` [B, 1], and codes of the flips: int [B, count].

    Others are looked at TILE by TILE, so that memory does not grow with their number.
    """
    block = _whole(queries[rows[:, 0]])
    flipped = torch.stack([flip_pictures(block, code)[:, : FREQUENCIES + 1] for code in SPECTRAL_CODES])
    best, places = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(spectra), TILE):
        columns = spectra[start : start + TILE].flatten(1).T
        for number, code in enumerate(SPECTRAL_CODES):
            scores = flipped[number].flatten(1) @ columns
            own = (rows[:, 0] >= start) & (rows[:, 0] < start + scores.shape[1])
            scores[own, rows[own, 0] - start] = -torch.inf  # an image is no sibling of itself
            values, indices = scores.topk(min(count, scores.shape[1]))
            best = torch.cat([best, values], 1)
            places = torch.cat([places, (indices + start) * len(FLIPS) + code], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :count]
        best, places = best.gather(1, order), places.gather(1, order)
    return places // len(FLIPS), places % len(FLIPS)


def _whole(halves: torch.Tensor) -> torch.Tensor:
    """[N, H, F] -> [N, F, F]: the other half-plane of a real picture's spectrum is the same, turned."""
    return torch.cat([halves, halves[:, :FREQUENCIES].flip(1, 2)], 1)


def _proposals(nearest: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Distinct i < j, code of images and their neighbours: int [P, 3]."""
    images, count = nearest.shape
    one = np.repeat(np.arange(images), count)
    other = nearest.ravel().astype(np.int64)
    pair = np.minimum(one, other) * images + np.maximum(one, other)
    pairs, codes = np.divmod(np.unique(pair * len(FLIPS) + codes.ravel()), len(FLIPS))
    return np.stack([*np.divmod(pairs, max(images, 1)), codes], axis=1)


# --- how well they agree ---------------------------------------------------------------------------------


class PairComparison:
    """The pictures with texture, and how well pairs of them agree. Positions count these pictures alone."""

    def __init__(
        self,
        thumbnails: np.ndarray,
        details: torch.Tensor,
        usable: np.ndarray,
        aspects: np.ndarray,
        max_shift: int,
    ) -> None:
        """`details` [K, S, S] are of thumbnails[usable]; `max_shift` is in their pixels."""
        self.thumbnails, self.details, self.usable = thumbnails, details, usable
        self.aspects, self.max_shift = aspects, max_shift
        self.enlargement = thumbnails.shape[1] / details.shape[1]
        self.texture = lru_cache(CACHED)(self._texture)
        self.polar_spectrum = lru_cache(CACHED)(self._polar_spectrum)

    def zoomed_spectra(self, zoom: tuple[float, float]) -> torch.Tensor:
        """Halves of the spectra [K, H, F] of the middle of each picture, magnified so much in y and x."""
        spectra = np.empty((len(self.usable), FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32)
        height, width = (round(self.thumbnails.shape[1] / factor) for factor in zoom)
        top, left = (self.thumbnails.shape[1] - height) // 2, (self.thumbnails.shape[1] - width) // 2
        for place, position in enumerate(self.usable):
            middle = self.thumbnails[position][top : top + height, left : left + width]
            detail = _detail(thumbnail(middle, self.details.shape[1]))
            spectra[place] = _unit(_spectrum(detail))[: FREQUENCIES + 1]
        return torch.from_numpy(spectra)

    def measure(self, starts: pd.DataFrame) -> pd.DataFrame:
        """The best of the starts (i, j, code, dy, dx) of each pair: i, j, code, agreement."""
        columns = [starts[name].tolist() for name in ("i", "j", "code", "dy", "dx")]
        agreements = list(in_threads(self._agreement, *columns, text="comparing pairs"))
        table = starts[["i", "j", "code"]].assign(agreement=np.array(agreements, dtype=float))
        table = table.sort_values(["i", "j", "agreement"], ascending=[True, True, False], kind="stable")
        return table.drop_duplicates(["i", "j"], ignore_index=True)

    def measure_at_any_angle(self, pairs: np.ndarray) -> np.ndarray:
        """Agreements [P] of the pairs (i, j), int [P, 2]."""
        columns = pairs[:, 0].tolist(), pairs[:, 1].tolist()
        return np.array(list(in_threads(self._agreement_at_any_angle, *columns, text="comparing objects")))

    def coarse_starts(self, proposed: np.ndarray, max_shift: int) -> pd.DataFrame:
        """Those of the pairs (i, j, code), int [P, 3], or half a turn on, that correlate when shifted.

        Columns i, j, code, dy, dx (pixels). A pair comes several times where several flips do equally well.
        """
        blocks = [np.empty((0, 6))]
        for start in tqdm(range(0, len(proposed), PAIR_BLOCK), "shifting pairs", leave=False, disable=None):
            block = proposed[start : start + PAIR_BLOCK]
            for code in np.unique(block[:, 2]):
                blocks += self._shifted(block[block[:, 2] == code, :2], int(code), max_shift)
        table = pd.DataFrame(np.concatenate(blocks), columns=["i", "j", "code", "dy", "dx", "correlation"])
        table = table[table["correlation"] >= LEAST_COARSE]
        best = table.groupby(["i", "j"])["correlation"].transform("max")
        table = table[table["correlation"] >= best - COARSE_MARGIN]
        whole = dict.fromkeys(["i", "j", "code", "dy", "dx"], int)
        return table.astype(whole).drop_duplicates(["i", "j", "code"], ignore_index=True)

    def measure_thoroughly(self, one: int, other: int) -> float:
        """The agreement of a pair under every flip and twice the usual shift."""
        proposed = np.array([[one, other, code] for code in SPECTRAL_CODES])
        starts = self.coarse_starts(proposed, 2 * self.max_shift)
        return self.measure(starts)["agreement"].max() if len(starts) else 0.0

    def _shifted(self, pairs: np.ndarray, code: int, max_shift: int) -> list[np.ndarray]:
        """i, j, code, dy, dx, correlation at the best shift, [P, 6]: of this code, and of half a turn more.

        By the convolution theorem, circular. Half a turn conjugates a transform and moves it by a pixel. What
        a shift moves out of the frame counts as different: 4 % both ways cost about 0.08.
        """
        several, again = np.unique(pairs[:, 0], return_inverse=True)
        still = torch.fft.rfft2(self.details[several].float())[again]
        moved = torch.fft.rfft2(flip_pictures(self.details[pairs[:, 1]].float(), code))
        shifts = torch.arange(-max_shift, max_shift + 1)
        tables = []
        for half_turn, products in enumerate([still.conj() * moved, (still * moved).conj()]):
            correlation, places = registration.best_shifts(products, shifts + half_turn)
            codes = np.full(len(pairs), code ^ 3 * half_turn)
            tables.append(np.column_stack([pairs, codes, places - max_shift, correlation]))
        return tables

    def _agreement(self, one: int, other: int, code: int, dy: int, dx: int) -> float:
        start = registration.flip_matrix(code, self.details.shape[1]) @ registration.shift_matrix(dy, dx)
        return self._refined_agreement(one, other, start)

    def _agreement_at_any_angle(self, one: int, other: int) -> float:
        start = registration.start_at_any_angle(
            self._detail(one),
            self._detail(other),
            registration.likely_rotations(self.polar_spectrum(one), self.polar_spectrum(other)),
            (self.aspects[self.usable[one]], self.aspects[self.usable[other]]),
            self.max_shift,
        )
        return self._refined_agreement(one, other, start)

    def _refined_agreement(self, one: int, other: int, start: np.ndarray) -> float:
        """Of the refined start, or of the start itself where refinement ran away, as over a new defect."""
        refined = registration.refine(self._detail(one), self._detail(other), start)
        agreement = self._agreement_under(one, other, refined)
        if agreement >= different.ALIKE:
            return agreement
        return max(agreement, self._agreement_under(one, other, start))

    def _agreement_under(self, one: int, other: int, matrix: np.ndarray) -> float:
        larger = registration.rescaled(matrix, self.enlargement)
        return registration.agreement(self.texture(one), self.texture(other), larger)

    def _detail(self, position: int) -> np.ndarray:
        return self.details[position].float().numpy()

    def _texture(self, position: int) -> np.ndarray:
        return registration.texture(self.thumbnails[self.usable[position]], NOISE)

    def _polar_spectrum(self, position: int) -> np.ndarray:
        return registration.polar_spectrum(self._detail(position), self.aspects[self.usable[position]])


# --- which pairs are taken for one object ----------------------------------------------------------------


def _decide(
    others: np.ndarray, compared: pd.DataFrame, proposed: np.ndarray, images: int, min_correlation: float
) -> tuple[Threshold, pd.DataFrame]:
    """The threshold, and the rows of `compared` that show one object."""
    least = np.arctanh(min(min_correlation, registration.LARGEST_CORRELATION))
    same_picture = max(SAME_PICTURE, least)
    best = different.best_agreements(compared, images)
    tests = len(np.unique(proposed[:, :2], axis=0))
    for has_one_design in (different.is_alike(others), True):
        threshold = different.choose_pair_threshold(others, best, images, tests, has_one_design)
        threshold = threshold._replace(agreement=max(threshold.agreement, least))
        is_alike = different.is_one_object(compared, best, threshold) & (compared["agreement"] >= least)
        if threshold.kind != "apart" or _largest_group(images, compared[is_alike]) <= LARGEST_GROUP * images:
            break
    is_copy = compared["agreement"] >= same_picture
    if _largest_group(images, compared[is_copy]) <= images / 2:
        threshold = threshold._replace(agreement=min(threshold.agreement, same_picture))
        is_alike |= is_copy
    return threshold, compared[is_alike]


def _largest_group(images: int, pairs: pd.DataFrame) -> int:
    return int(np.bincount(group_ids(images, pairs), minlength=1).max())


def _without_chains(
    alike: pd.DataFrame,
    compared: pd.DataFrame,
    least: float,
    contents: np.ndarray,
    comparison: PairComparison,
) -> pd.DataFrame:
    """The pairs within groups; groups are joined only where most of their members agree with each other.

    To agree is to exceed `least`. The pairs that agree best are joined first; of large groups MOST_LINKS
    pairs of members are looked at.
    """
    agreements = dict(zip(zip(compared["i"], compared["j"], strict=True), compared["agreement"], strict=True))
    group_of = {image: image for image in np.unique(alike[["i", "j"]])}
    members = {image: [image] for image in group_of}
    order = alike.sort_values("agreement", ascending=False, kind="stable")
    for i, j in zip(order["i"], order["j"], strict=True):
        one, other = group_of[i], group_of[j]
        if one == other:
            continue
        count = int(np.sqrt(MOST_LINKS))
        links = [
            (min(first, second), max(first, second))
            for first in members[one][:count]
            for second in members[other][:count]
        ]
        for link in links:
            if agreements.get(link, 0.0) < least:
                agreements[link] = comparison.measure_thoroughly(*link)
        if 2 * sum(agreements[link] >= least for link in links) > len(links):
            members[one] = sorted(members[one] + members.pop(other), key=lambda image: contents[image])
            group_of.update(dict.fromkeys(members[one], one))
    is_within = [group_of[i] == group_of[j] for i, j in zip(alike["i"], alike["j"], strict=True)]
    return alike[np.array(is_within, dtype=bool)]
