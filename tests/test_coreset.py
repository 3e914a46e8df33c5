"""The coreset is the plain greedy one, pick for pick, in few passes over the vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defects.models import coreset
from defects.models.coreset import greedy_coreset


def by_definition(vectors: np.ndarray, count: int) -> list[int]:
    """Plain greedy k-centre in float64: from the vector nearest to the mean, always the farthest one."""
    vectors = vectors.astype(np.float64)
    chosen = [int(((vectors - vectors.mean(0)) ** 2).sum(1).argmin())]
    squared = ((vectors - vectors[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count and squared.max() > 0:
        chosen.append(int(squared.argmax()))
        squared = np.minimum(squared, ((vectors - vectors[chosen[-1]]) ** 2).sum(1))
    return chosen


def heavy_tailed(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(size=(rows, 24)) * rng.exponential(size=(rows, 1))


VECTORS = {
    "normal": lambda rng: rng.normal(size=(700, 12)),
    "heavy tails": lambda rng: heavy_tailed(rng, 700),
    "far from the origin": lambda rng: heavy_tailed(rng, 700) + 100,
    "one giant": lambda rng: np.vstack([heavy_tailed(rng, 700), np.full((1, 24), 1e4)]),
    "copies": lambda rng: rng.normal(size=(150, 12))[rng.integers(0, 150, 700)],
    "equal distances": lambda rng: rng.integers(0, 4, (700, 5)),
    "one and the same": lambda rng: np.ones((700, 3)),
}


@pytest.fixture(params=[(20, 3), (100, 64), (2000, 64)], ids=lambda sizes: f"candidates{sizes[0]}")
def several_passes(request, monkeypatch):
    """Few candidates and small blocks, as if there were many vectors."""
    monkeypatch.setattr(coreset, "CANDIDATES", request.param[0])
    monkeypatch.setattr(coreset, "CENTRES_PER_CHECK", request.param[1])
    monkeypatch.setattr(coreset, "BLOCK_VECTORS", 128)
    monkeypatch.setattr(coreset, "CENTRES", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", VECTORS)
def test_coreset_picks_are_those_of_plain_greedy(kind, dtype, several_passes):
    for seed in range(3):
        vectors = torch.tensor(VECTORS[kind](np.random.default_rng(seed)), dtype=dtype)
        found = greedy_coreset(vectors, 160)
        assert found.indices.tolist() == by_definition(vectors.numpy(), 160)


def test_coreset_going_on_from_known_centres_is_one_long_choice(several_passes):
    vectors = torch.tensor(heavy_tailed(np.random.default_rng(0), 600))
    whole = greedy_coreset(vectors, 90)
    first = greedy_coreset(vectors, 40).indices
    rest = greedy_coreset(vectors, 50, centres=vectors[first])
    assert torch.cat([first, rest.indices]).tolist() == whole.indices.tolist()
    assert rest.radius == pytest.approx(whole.radius)


def test_coreset_it_ends_when_all_are_near_enough(several_passes):
    vectors = torch.tensor(heavy_tailed(np.random.default_rng(0), 600))
    found = greedy_coreset(vectors, 600, radius=3.0)
    one_less = greedy_coreset(vectors, len(found.indices) - 1)
    assert 1 < len(found.indices) < 600
    assert found.radius <= 3.0 < one_less.radius
    assert len(greedy_coreset(vectors, 600, centres=vectors[found.indices], radius=3.0).indices) == 0


numbers = st.floats(-100, 100, width=16)


@given(arrays(np.float64, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=numbers), st.data())
def test_coreset_radius_is_that_of_the_centres_and_these_are_farther_apart(vectors, data):
    count = data.draw(st.integers(1, len(vectors)))
    found = greedy_coreset(torch.from_numpy(vectors), count)
    centres = vectors[found.indices.numpy()]
    between = np.linalg.norm(vectors[:, None] - centres, axis=2)
    # Vectors nearer than products can tell from copies count as such: 1e-5 at this distance from the origin.
    assert found.radius == pytest.approx(between.min(1).max(), abs=2e-5)
    # Hence no other choice of as many centres has less than half this radius.
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[np.triu_indices(len(centres), 1)]
    assert (apart >= found.radius - 2e-5).all()
    assert len(set(found.indices.tolist())) == len(centres) <= count


@pytest.mark.parametrize("giants", [0, 3])
def test_coreset_few_passes_over_all_vectors(giants, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = np.vstack([heavy_tailed(rng, 20_000), rng.normal(size=(giants, 24)) * 1e3])
    passes, add = [], coreset._Distances.add
    monkeypatch.setattr(coreset._Distances, "add", lambda *args: passes.append(add(*args)))
    greedy_coreset(torch.tensor(vectors, dtype=torch.float32), 400)
    assert len(passes) < 20
