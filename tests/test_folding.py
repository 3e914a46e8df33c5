"""Batch normalisations folded into convolutions."""

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from defects.models.folding import fold_norms, folded_norms

SIZE = (16, 16)


def with_statistics(network: nn.Module) -> nn.Module:
    """As after a training: no batch normalisation leaves its input as it is."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return network.eval()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Outputs(nn.Module):
    """As detectors have them: a score and a map."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = with_statistics(network)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.network(images), None


class AddsItsConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(images)
        return maps + self.norm(maps)


def convolution_and_norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def shared_convolution() -> nn.Sequential:
    convolution = nn.Conv2d(3, 3, 3)
    return nn.Sequential(convolution, nn.BatchNorm2d(3), convolution, nn.BatchNorm2d(3))


def test_folded_norms_of_a_convolution_give_the_same_outputs():
    network = Outputs(convolution_and_norm())
    images = torch.rand(2, 3, *SIZE)
    expected = network(images)[0]
    with folded_norms(network, SIZE):
        assert count_norms(network) == 0
        torch.testing.assert_close(network(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_folded_norms_are_put_back():
    network = Outputs(convolution_and_norm())
    before = {name: values.clone() for name, values in network.state_dict().items()}
    with folded_norms(network, SIZE):
        pass
    assert {name: values.tolist() for name, values in network.state_dict().items()} == {
        name: values.tolist() for name, values in before.items()
    }


@pytest.mark.parametrize(
    "network",
    [
        AddsItsConvolution(),
        shared_convolution(),
        nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ],
    ids=["output used twice", "runs twice", "weights standardised", "activation between", "norm first"],
)
def test_fold_norms_of_other_pairs_folds_none(network):
    network = Outputs(network)
    images = torch.rand(2, 3, *SIZE)
    expected = network(images)[0]
    assert fold_norms(network, SIZE) == {}
    assert network(images)[0].equal(expected)
