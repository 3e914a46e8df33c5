"""Photographs of the same object, which must stay in one fold.

Power spectra, which a shift leaves alone, propose pairs; each is registered and its agreement measured: the
Fisher transform of a correlation (registration.py). Photographs of one design of part agree as well, so a
pair is taken for one object where it agrees more than different objects of this very data set do.

For these a sample of pairs that are no close neighbours is compared at any angle. Where they share a texture
only, the tail of their agreements gives the threshold for a set rate of errors. Where they share a design,
close neighbours agree more than such a sample, having the same pose and light: there the third best agreement
of each image counts as well, since few objects of such a set were photographed more than three times, and a
pair must stand out from what else its two images agree with, since a folder may hold several designs.
"""

import hashlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from defects.config_schema import DuplicateConfig
from defects.data.bounded_memory import allocate_array
from defects.data.neighbours import NeighbourSearch, propose_pairs
from defects.data.registration import (
    ALIKE,
    FLIPS,
    FREQUENCIES,
    LARGEST_CORRELATION,
    PairComparison,
    extract_detail,
    half_spectrum,
    scale_to_unit,
    thumbnail,
)

PICTURE_SIDE = 64  # pixels, of the pictures that propose pairs and that registration starts from
ZOOMS = [(y, x) for y in (1.0, 1.05, 1.1) for x in (1.0, 1.05, 1.1) if y * x > 1]
SAME_PICTURE = np.arctanh(0.9995)  # agreement of copies of one picture
LARGEST_GROUP = 0.25  # of the images; larger ones tell a common design
MOST_LINKS = 16  # pairs compared before two groups are joined
# Of the threshold; agreements unless another unit is stated.
SAMPLE = 128  # images that are compared
PARTNERS = 12  # with so many others
LARGEST_SHARE = 8  # one object's photographs are taken to be at most this part of the images
FALSE_SHARE = 0.001  # of the images may be joined to another object
TAIL = 0.01  # share of the sample that the tail is fitted on
LEAST_TAIL = 20  # pairs of it, at least
LEAST_SAMPLE = 60  # pairs; with fewer the tail is not known
RANK = 3  # of the neighbour that is taken to show another object
SPREADS = 4  # times the upper spread of third neighbours that the closest of all pairs may lie above them
MOST_ABOVE = 0.45  # at most so far above: such a pair differs 2.5 times less
SPARSE = 100  # images; fewer, at any angle, may hold a single close pair,
SPARSE_ABOVE = 0.35  # which must lie so far above: differ half as much
MOST_TAIL = 0.7  # so far, at most, the fitted tail is followed
LEAST_LEAD = 0.3  # of a pair over other objects where a design is shared: it differs 1.8 times less
LEAD_SCALES = 7  # a lead of so many exponential scales is no chance (e^-7)
STEP = 1.0  # a fall of ranked agreements that ends the photographs of one object,
MOST_PHOTOGRAPHS = 8  # looked for among so many of them
FEW = np.arctanh(0.9)  # threshold where the sample is too small
FEW_ALIKE = np.arctanh(0.995)  # and a design is shared


@dataclass(frozen=True)
class SiblingSearch:
    """Pairs of one object, and what they were judged by; correlations are those of registered pictures."""

    pairs: pd.DataFrame  # i, j, correlation, flip: positions i < j of images that show one object
    threshold: float  # correlation from which on a pair is taken for one object
    chance_level: float  # correlation that different objects of the set hardly exceed
    kind: str  # of the threshold: apart, alike, few
    compared: pd.DataFrame  # i, j, correlation, flip of the compared pairs
    different: np.ndarray  # correlations of a sample of pairs of different objects


class Threshold(NamedTuple):
    """From which agreement on a pair shows one object; different objects hardly exceed `chance_level`."""

    agreement: float
    chance_level: float
    kind: str  # "apart": objects differ; "alike": they share a design; "few": too few images to tell


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
    comparison = PairComparison(
        thumbnails, details, usable, aspects, round(settings.max_shift * PICTURE_SIDE)
    )
    search = NeighbourSearch(spectra, contents[usable])
    nearest, codes = search.find_nearest(settings.neighbours + PARTNERS // 2)
    sample = _sample_pairs(nearest, contents[usable], settings.neighbours)
    agreements_of_different = comparison.measure_at_any_angle(sample)
    proposed = propose_pairs(nearest[:, : settings.neighbours], codes[:, : settings.neighbours])
    if _is_alike(agreements_of_different):
        # Among pictures of one design the spectrum of a cropped one is nearer to others than to its original.
        zoomed = []
        for zoom in ZOOMS:
            zoomed.append(propose_pairs(*search.find_nearest(1, comparison.zoomed_spectra(zoom))))
        proposed = np.unique(np.concatenate([proposed, *zoomed]), axis=0)
    compared = comparison.measure(comparison.coarse_starts(proposed, comparison.max_shift))
    threshold, alike = _decide(
        agreements_of_different, compared, proposed, len(usable), settings.min_correlation
    )
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
        different=np.tanh(agreements_of_different),
    )


def group_ids(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Connected components of `n` images under the pairs (i, j): int [n], numbered by first occurrence."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs["i"], pairs["j"])), shape=(n, n))
    _, component = connected_components(edges, directed=False)
    return pd.factorize(component)[0]


# --- which pairs are proposed ----------------------------------------------------------------------------


def _features(
    thumbnails: np.ndarray, min_texture: float, folder: Path | None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Of the K pictures with texture: details [K, S, S], halves of spectra [K, H, F], positions [K]."""
    side = min(PICTURE_SIDE, thumbnails.shape[1])
    # In half precision: this array takes the most memory.
    details = allocate_array((len(thumbnails), side, side), np.float16, folder)
    spectra = allocate_array((len(thumbnails), FREQUENCIES + 1, 2 * FREQUENCIES + 1), np.float32, folder)
    usable = []
    for position, picture in enumerate(tqdm(thumbnails, "describing images", leave=False, disable=None)):
        detail = extract_detail(thumbnail(picture, side))
        if np.square(detail).mean() < min_texture:
            continue
        details[len(usable)] = scale_to_unit(detail)
        spectra[len(usable)] = half_spectrum(detail)
        usable.append(position)
    count = len(usable)
    return torch.from_numpy(details[:count]), torch.from_numpy(spectra[:count]), np.array(usable, np.int64)


def _identical(thumbnails: np.ndarray, contents: np.ndarray) -> pd.DataFrame:
    """Pairs of the first and each later copy of the same pixels, unless these are all one colour."""
    has_content = [bool(np.ptp(picture)) for picture in thumbnails]
    content = pd.Series(contents, dtype=object)[has_content]
    position = content.index.to_series()
    first = position.groupby(content).transform("first")
    pairs = pd.DataFrame({"i": first, "j": position})[first != position]
    return pairs.assign(correlation=1.0, flip="none")


# --- how well different objects agree --------------------------------------------------------------------


def _sample_pairs(nearest: np.ndarray, contents: np.ndarray, neighbours: int) -> np.ndarray:
    """Positions i < j, int [P, 2], of pairs that hardly show one object.

    `nearest` [N, K] are the neighbours of each image, nearest first; as many as may show the same object are
    left out. Half of the partners of an image are the next ones, half any. `contents` [N] are texts that
    settle what is sampled whatever the order of the images; images of equal content are no pair.
    """
    images = len(nearest)
    most = max(1, min(neighbours, images // LARGEST_SHARE))
    order = np.argsort(contents, kind="stable")
    pairs = set()
    for place in range(min(SAMPLE, images)):
        image = int(order[place])
        ranked = _distinct(nearest[image])
        any_images = (int(order[(place + step) % images]) for step in range(1, images))
        partners = set()
        for candidate in chain(ranked[most : most + PARTNERS // 2], any_images):
            if len(partners) == PARTNERS:
                break
            is_close = candidate in ranked[:most] or image in _distinct(nearest[candidate])[:most]
            if not is_close and contents[image] != contents[candidate]:
                partners.add(candidate)
        pairs.update((min(image, partner), max(image, partner)) for partner in partners)
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _distinct(places: np.ndarray) -> list[int]:
    """Each place once, in the order of their first occurrence: one image may be near under several flips."""
    return list(dict.fromkeys(places.tolist()))


def _is_alike(different: np.ndarray) -> bool:
    """Whether the sampled pairs tell a common design, by their agreements [P]."""
    return len(different) > 0 and bool(np.quantile(different, 0.99) >= ALIKE)


def _choose_pair_threshold(
    different: np.ndarray, best: np.ndarray, images: int, proposed: int, has_one_design: bool
) -> Threshold:
    """From the agreements of the sampled pairs [P] and the best ones of each image [N, MOST_PHOTOGRAPHS].

    `proposed` is how many pairs the threshold will be applied to. With `has_one_design` the objects are
    known to share it.
    """
    usual, upper = np.quantile(best[:, RANK - 1], [0.5, 0.9]) if len(best) else (0.0, 0.0)
    if len(different) < LEAST_SAMPLE:
        least = FEW_ALIKE if has_one_design or upper >= ALIKE else FEW
        return Threshold(max(least, upper + MOST_ABOVE), upper, "few")
    chance_level = float(np.quantile(different, 0.99))
    tail = _tail_threshold(different, FALSE_SHARE * images / 2 / proposed)
    if not has_one_design:
        return Threshold(tail, chance_level, "apart")
    closest = upper + min(SPREADS * (upper - usual), MOST_ABOVE)
    if images < SPARSE:
        closest = max(closest, max(chance_level, upper) + SPARSE_ABOVE)
    return Threshold(max(closest, min(tail, chance_level + MOST_TAIL)), max(chance_level, upper), "alike")


def _best_agreements(compared: pd.DataFrame, images: int) -> np.ndarray:
    """The best agreements of each image, best first: [N, MOST_PHOTOGRAPHS]; 0 where fewer were compared."""
    pairs = compared[["i", "j", "agreement"]]
    both = pd.concat([pairs, pairs.rename(columns={"i": "j", "j": "i"})])
    both = both.sort_values("agreement", ascending=False, kind="stable")
    rank = both.groupby("i").cumcount().to_numpy()
    is_kept = rank < MOST_PHOTOGRAPHS
    best = np.zeros((images, MOST_PHOTOGRAPHS))
    best[both["i"].to_numpy()[is_kept], rank[is_kept]] = both["agreement"].to_numpy()[is_kept]
    return best


def _is_one_object(compared: pd.DataFrame, best: np.ndarray, threshold: Threshold) -> np.ndarray:
    """bool [P]: which of the pairs (i, j, agreement) show one object.

    Where a design is shared, those above the threshold that lead over the other objects of both images, and
    those above the chance_level of different objects whose lead is no chance.
    """
    agreement = compared["agreement"].to_numpy()
    is_above = agreement >= threshold.agreement
    if threshold.kind != "alike":
        return is_above
    level = _level_of_other_objects(best)
    lead = agreement - np.maximum(level[compared["i"]], level[compared["j"]])
    scales = _lead_scales(best)
    chance = LEAD_SCALES * np.maximum(scales[compared["i"]], scales[compared["j"]])
    is_outstanding = (agreement >= threshold.chance_level) & (lead >= chance)
    return (lead >= LEAST_LEAD) & (is_above | is_outstanding)


def _level_of_other_objects(best: np.ndarray) -> np.ndarray:
    """How well each image agrees with the nearest one of another object, [N].

    Its RANK-th best agreement, or the one behind a large step further down: an object photographed often.
    """
    level = best[:, RANK - 1]
    for rank in reversed(range(RANK, best.shape[1])):
        is_step = best[:, rank - 1] - best[:, rank] >= STEP
        level = np.where(is_step, best[:, rank], level)
    return level


def _lead_scales(best: np.ndarray) -> np.ndarray:
    """The scale, for each image, of an exponential tail of its agreements with different objects: [N].

    From order statistics: the first exceeds the third by 1.5 scales (1.26 in the median), the third the
    eighth by 1.09. The larger of what the image itself and what all images show.
    """
    own = (best[:, 2] - best[:, 7]) / 1.09
    common = np.median(best[:, 0] - best[:, 2]) / 1.26
    return np.maximum(own, common)


def _tail_threshold(different: np.ndarray, error_rate: float) -> float:
    """The agreement that a pair of different objects exceeds with this probability, by an exponential tail.

    Its scale comes from the median, which a few photographs of one object in the sample hardly move.
    """
    ordered = np.sort(different)[::-1]
    count = max(LEAST_TAIL, int(TAIL * len(ordered)))
    start = ordered[count]
    scale = np.median(ordered[:count] - start) / np.log(2)
    return float(start + scale * np.log(count / len(ordered) / error_rate))


# --- which pairs are taken for one object ----------------------------------------------------------------


def _decide(
    different: np.ndarray, compared: pd.DataFrame, proposed: np.ndarray, images: int, min_correlation: float
) -> tuple[Threshold, pd.DataFrame]:
    """The threshold, and the rows of `compared` that show one object.

    `different` [P] are agreements of different objects.
    """
    least = np.arctanh(min(min_correlation, LARGEST_CORRELATION))
    same_picture = max(SAME_PICTURE, least)
    best = _best_agreements(compared, images)
    tests = len(np.unique(proposed[:, :2], axis=0))
    for has_one_design in (_is_alike(different), True):
        threshold = _choose_pair_threshold(different, best, images, tests, has_one_design)
        threshold = threshold._replace(agreement=max(threshold.agreement, least))
        is_alike = _is_one_object(compared, best, threshold) & (compared["agreement"] >= least)
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
    pairs of members are compared.
    """
    agreements = dict(zip(zip(compared["i"], compared["j"], strict=True), compared["agreement"], strict=True))
    group_of = {image: image for image in np.unique(alike[["i", "j"]])}
    members = {image: [image] for image in group_of}
    most_members = int(np.sqrt(MOST_LINKS))
    order = alike.sort_values("agreement", ascending=False, kind="stable")
    for i, j in zip(order["i"], order["j"], strict=True):
        first_group = group_of[i]
        second_group = group_of[j]
        if first_group == second_group:
            continue
        links = []
        for first in members[first_group][:most_members]:
            for second in members[second_group][:most_members]:
                links.append((min(first, second), max(first, second)))
        for link in links:
            if agreements.get(link, 0.0) < least:
                agreements[link] = comparison.measure_thoroughly(*link)
        if 2 * sum(agreements[link] >= least for link in links) > len(links):
            joined = members[first_group] + members.pop(second_group)
            members[first_group] = sorted(joined, key=lambda image: contents[image])
            group_of.update(dict.fromkeys(joined, first_group))
    is_within = [group_of[i] == group_of[j] for i, j in zip(alike["i"], alike["j"], strict=True)]
    return alike[np.array(is_within, dtype=bool)]


def _in_images(table: pd.DataFrame, usable: np.ndarray) -> pd.DataFrame:
    """i, j, correlation, flip of rows whose positions count the usable pictures alone."""
    columns = {
        "i": usable[table["i"]],
        "j": usable[table["j"]],
        "correlation": np.tanh(table["agreement"]),
        "flip": np.array(FLIPS)[table["code"]],
    }
    return pd.DataFrame(columns).reset_index(drop=True)
