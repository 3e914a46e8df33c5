"""Statistics of features and maps, against numpy, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from defects.models.statistics import (
    ChannelMoments,
    GaussianSmoothing,
    StreamingCovariance,
    Whitening,
    exact_quantile,
    explained_components,
    raise_small_deviations,
)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_statistics_quantile_is_the_smallest_value_that_enough_do_not_exceed(values, q):
    found = float(exact_quantile(torch.tensor(values), q))
    assert found in values
    assert np.mean(np.array(values) <= found) >= q - 1e-12
    below = [value for value in values if value < found]
    assert not below or np.mean(np.array(values) <= max(below)) < q


@pytest.mark.parametrize(("sigma", "shape"), [(1.0, (20, 31)), (2.5, (9, 40)), (4.0, (5, 5))])
def test_statistics_smoothing_is_the_gaussian_filter(sigma, shape):
    maps = np.random.default_rng(0).random((2, 3, *shape))
    found = GaussianSmoothing(sigma)(torch.tensor(maps, dtype=torch.float32)).numpy()
    expected = gaussian_filter(maps, (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    assert found == pytest.approx(expected, abs=1e-5)


def vectors(rows: int, channels: int, offset: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return offset + rng.normal(size=(rows, channels)) @ rng.normal(size=(channels, channels))


@pytest.mark.parametrize("parts", [[5000], [1, 4999], [1500] * 3 + [500]])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_statistics_covariance_of_a_stream_is_that_of_the_whole(parts, offset):
    whole, stream = vectors(5000, 7, offset), StreamingCovariance(7, torch.device("cpu"))
    for part in torch.from_numpy(whole).split(parts):
        stream.update(part)
    np.testing.assert_allclose(stream.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stream.covariance, np.cov(whole.T), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99, 0.999])
def test_statistics_components_are_those_of_scikit_learn(share):
    whole, stream = vectors(400, 20, 3.0), StreamingCovariance(20, torch.device("cpu"))
    stream.update(torch.from_numpy(whole))
    expected = PCA(n_components=share, svd_solver="full").fit(whole).n_components_
    assert explained_components(stream.covariance, share) == expected


def test_statistics_features_that_never_change_have_one_component():
    assert explained_components(torch.zeros(5, 5, dtype=torch.float64), 0.9) == 1


def test_statistics_streaming_covariance_of_mps_lies_on_the_cpu():
    vectors = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    stream = StreamingCovariance(3, torch.device("mps"))
    stream.update(vectors)
    assert stream.mean.device.type == "cpu" and stream.mean.dtype == torch.float64
    assert torch.allclose(stream.covariance, torch.cov(vectors.double().T))
    assert explained_components(stream.covariance, 0.99) == 3


def test_statistics_channel_moments_are_those_of_all_maps_together():
    maps = (
        torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        + torch.tensor([0, 50, -3])[:, None, None]
    )
    moments = ChannelMoments(3)
    for part in maps.split(2):
        moments.add(part)
    mean, std = moments.result()
    values = maps.double().transpose(0, 1).flatten(1)
    assert mean.shape == std.shape == (1, 3, 1, 1)
    torch.testing.assert_close(mean.flatten().double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(std.flatten().double(), values.std(1, correction=0), rtol=1e-6, atol=1e-6)


def test_statistics_channel_moments_of_a_constant_channel_can_be_divided_by():
    moments = ChannelMoments(1)
    moments.add(torch.full((2, 1, 3, 3), 0.7))
    assert moments.std == pytest.approx(0, abs=1e-7) and moments.result()[1] > 0


def test_statistics_small_deviations_are_raised_to_a_hundredth_of_the_mean():
    std = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    assert raise_small_deviations(std).tolist() == pytest.approx([0.01, 1, 2])
    assert raise_small_deviations(torch.zeros(2)).min() > 0


def test_whitening_is_no_convolution_that_exports_in_eight_bits_would_round():
    whitening = Whitening(4, shrinkage=0.1)
    program = torch.export.export(whitening, (torch.zeros(2, 4, 3, 5),))
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("matmul" in name for name in operations)
    assert not any("conv" in name for name in operations)
