"""What different objects of a data set have in common, and how much more two photographs of one must show.

Agreements are Fisher transforms of correlations (registration.py). A sample of pairs that are no close
neighbours is compared at any angle. Where they share a texture only, the tail of their agreements gives the
threshold for a wanted rate of errors. Where they share a design, close neighbours agree more than such a
sample, having the same pose and light: there the third best agreement of each image is looked at as well,
since few objects of such a set were photographed more than three times, and a pair must stand out from what
else its two images agree with, since a folder may hold several designs.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

SAMPLE, PARTNERS = 128, 12  # images that are compared with so many others
LARGEST_SHARE = 8  # one object's photographs are taken to be at most this part of the images
FALSE_SHARE = 0.001  # of the images may be joined to another object
TAIL, LEAST_TAIL = 0.01, 20  # share of the sample, but at least so many pairs, that the tail is fitted on
LEAST_SAMPLE = 60  # pairs; with fewer the tail is not known
RANK = 3  # of the neighbour that is taken to show another object
ALIKE = 0.7  # agreement (correlation 0.6) of one pair in a hundred that tells a common design
SPREADS = 4  # times the upper spread of third neighbours that the closest of all pairs may lie above them
MOST_ABOVE = 0.45  # at most so far above: such a pair differs 2.5 times less
SPARSE = 100  # images; fewer, at any angle, may hold a single close pair,
SPARSE_ABOVE = 0.35  # which must lie so far above: differ half as much
MOST_TAIL = 0.7  # so far, at most, the fitted tail is followed
LEAST_LEAD = 0.3  # of a pair over other objects where a design is shared: it differs 1.8 times less
LEAD_SCALES = 7  # a lead of so many exponential scales is no chance (e^-7)
STEP = 1.0  # a fall of ranked agreements that ends the photographs of one object,
MOST_PHOTOGRAPHS = 8  # looked for among so many of them
FEW, FEW_ALIKE = np.arctanh(0.9), np.arctanh(0.995)  # thresholds where the sample is too small


class Threshold(NamedTuple):
    """From which agreement on a pair shows one object; different objects hardly exceed `chance_level`."""

    agreement: float
    chance_level: float
    kind: str  # "apart": objects differ; "alike": they share a design; "few": too few images to tell


def sample_pairs(nearest: np.ndarray, contents: np.ndarray, neighbours: int) -> np.ndarray:
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
        one = int(order[place])
        ranked = _distinct(nearest[one])
        any_ones = (int(order[(place + step) % images]) for step in range(1, images))
        partners = set()
        for other in chain(ranked[most : most + PARTNERS // 2], any_ones):
            if len(partners) == PARTNERS:
                break
            is_close = other in ranked[:most] or one in _distinct(nearest[other])[:most]
            if not is_close and contents[one] != contents[other]:
                partners.add(other)
        pairs.update((min(one, other), max(one, other)) for other in partners)
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _distinct(places: np.ndarray) -> list[int]:
    """Each place once, in the order of their first occurrence: one image may be near under several flips."""
    return list(dict.fromkeys(places.tolist()))


def is_alike(different: np.ndarray) -> bool:
    """Whether the sampled pairs tell a common design, by their agreements [P]."""
    return len(different) > 0 and bool(np.quantile(different, 0.99) >= ALIKE)


def choose_pair_threshold(
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


def best_agreements(compared: pd.DataFrame, images: int) -> np.ndarray:
    """The best agreements of each image, best first: [N, MOST_PHOTOGRAPHS]; 0 where fewer were compared."""
    pairs = compared[["i", "j", "agreement"]]
    both = pd.concat([pairs, pairs.rename(columns={"i": "j", "j": "i"})])
    both = both.sort_values("agreement", ascending=False, kind="stable")
    rank = both.groupby("i").cumcount().to_numpy()
    is_kept = rank < MOST_PHOTOGRAPHS
    best = np.zeros((images, MOST_PHOTOGRAPHS))
    best[both["i"].to_numpy()[is_kept], rank[is_kept]] = both["agreement"].to_numpy()[is_kept]
    return best


def is_one_object(compared: pd.DataFrame, best: np.ndarray, threshold: Threshold) -> np.ndarray:
    """bool [P]: which of the pairs (i, j, agreement) show one object.

    Where a design is shared, those above the threshold that lead over the other objects of both images, and
    those above the chance_level of different objects whose lead is no chance.
    """
    agreement = compared["agreement"].to_numpy()
    is_above = agreement >= threshold.agreement
    if threshold.kind != "alike":
        return is_above
    others = _level_of_others(best)
    lead = agreement - np.maximum(others[compared["i"]], others[compared["j"]])
    scales = _lead_scales(best)
    chance = LEAD_SCALES * np.maximum(scales[compared["i"]], scales[compared["j"]])
    is_outstanding = (agreement >= threshold.chance_level) & (lead >= chance)
    return (lead >= LEAST_LEAD) & (is_above | is_outstanding)


def _level_of_others(best: np.ndarray) -> np.ndarray:
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
