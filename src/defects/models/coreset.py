"""Greedy k-centre selection: a few vectors such that every other one is near one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm

BLOCK_VECTORS = 8192  # vectors compared at a time
CENTRES = 256  # with so many centres
CANDIDATES = 2048  # vectors among which the next centres are chosen
CENTRES_PER_CHECK = 64  # centres chosen before their distances are checked: every check makes a GPU wait


class Coreset(NamedTuple):
    """`indices` [n] of the vectors chosen, in order; `radius`: no vector is farther from a centre."""

    indices: torch.Tensor
    radius: float


def greedy_coreset(
    vectors: torch.Tensor, count: int, centres: torch.Tensor | None = None, radius: float = 0.0
) -> Coreset:
    """Choose up to `count` of `vectors` [N, C]: each time the one farthest from all chosen before.

    The first is the vector nearest to the mean; with `centres` [M, C] the choice goes on from these.
    It ends early when every vector lies within `radius` of a centre, at the latest when all that are left
    are copies of centres, as far as rounding can tell. Of equally far vectors the first is taken.

    Exactly the greedy choice of Gonzalez (1985), whose radius is at most twice the smallest possible, in
    much fewer passes over all vectors than one for each centre. Distances only fall while centres are
    added. So a pass keeps the farthest vectors as candidates and the distance of the next one as a bound on
    all others: as long as the farthest candidate is beyond the bound, it is the farthest of all.
    """
    typical = _nearest_to_mean(vectors)
    distances = _Distances(vectors, origin=vectors[typical])
    chosen = typical.new_empty(0) if centres is not None else typical[None]
    distances.add(vectors[chosen] if centres is None else centres)
    with tqdm(total=count, desc="coreset", initial=len(chosen), leave=False, disable=None) as bar:
        while True:
            rows, squared, bound = distances.farthest(CANDIDATES)
            limit = max(bound, radius**2)
            if len(chosen) >= count or squared.max() <= radius**2:
                return Coreset(chosen, float(squared.max().sqrt()))
            with _one_thread():
                order = _greedy(vectors[rows], squared, limit, count - len(chosen))
            # More equals than candidates: the first of all of them.
            picked = rows[order] if len(order) else distances.squared.argmax()[None]
            distances.add(vectors[picked])
            chosen = torch.cat([chosen, picked])
            bar.update(len(picked))


class _Distances:
    """Squared distances of all vectors to the nearest centre so far.

    A pass is one matrix product, |x|^2 - 2xc + |c|^2. That loses digits, the more so the farther the
    vectors are from the origin: hence the shift to a typical vector, and `slack` for what is left of it.
    """

    def __init__(self, vectors: torch.Tensor, origin: torch.Tensor):
        self.vectors = vectors
        self.origin = origin
        self.centres = vectors[:0]
        self.norms = torch.cat([(block - origin).square().sum(1) for block in vectors.split(BLOCK_VECTORS)])
        self.slack = 4 * torch.finfo(vectors.dtype).eps * vectors.shape[1] ** 0.5
        self.squared = torch.full_like(self.norms, torch.inf)
        self.nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)

    def add(self, centres: torch.Tensor) -> None:
        """Compare all vectors with the centres [K, C]."""
        for part in centres.split(CENTRES):
            self._compare(part - self.origin, len(self.centres))
            self.centres = torch.cat([self.centres, part])

    def _compare(self, centres: torch.Tensor, first: int) -> None:
        norms = centres.square().sum(1)
        blocks = (
            part.split(BLOCK_VECTORS) for part in (self.vectors, self.norms, self.squared, self.nearest)
        )
        for vectors, own, squared, nearest in zip(*blocks, strict=True):
            distance, index = torch.addmm(norms, vectors - self.origin, centres.T, alpha=-2).min(1)
            distance.add_(own).clamp_(min=0)
            nearer = distance < squared
            torch.where(nearer, distance, squared, out=squared)
            torch.where(nearer, index.add_(first), nearest, out=nearest)

    def farthest(self, count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Rows of the `count` farthest vectors, their squared distances, and a bound on all others'."""
        upper = self.squared + self.slack * self.norms
        if len(upper) > count:
            top = upper.topk(count + 1)
            rows = top.indices[:-1].sort().values
            bound = float(top.values[-1])
        else:
            rows = torch.arange(len(upper), device=upper.device)
            bound = 0.0
        # Differences first, products never: equal vectors have distance 0, and equal distances tie.
        squared = (self.vectors[rows] - self.centres[self.nearest[rows]]).square().sum(1)
        squared[squared <= self.slack * self.norms[rows]] = 0
        return rows, squared, bound


def _greedy(points: torch.Tensor, squared: torch.Tensor, limit: float, count: int) -> torch.Tensor:
    """Up to `count` indices of the points farthest in turn, as long as they are farther than `limit`."""
    order = []
    while len(order) < count:
        steps = []
        heights = []
        for _ in range(min(CENTRES_PER_CHECK, count - len(order))):
            height, index = squared.max(0, keepdim=True)
            steps.append(index)
            heights.append(height)
            away = (points - points.index_select(0, index)).square_().sum(1)
            squared = torch.minimum(squared, away)
        beyond = int((torch.cat(heights) > limit).sum())  # heights only fall
        order += steps[:beyond]
        if beyond < len(steps):
            break
    return torch.cat(order) if order else squared.new_empty(0, dtype=torch.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For many steps of 0.1 ms each: where other programs hold the cores, threads wait longer than that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _nearest_to_mean(vectors: torch.Tensor) -> torch.Tensor:
    mean = vectors.mean(0)
    return torch.cat([(block - mean).square().sum(1) for block in vectors.split(BLOCK_VECTORS)]).argmin()
