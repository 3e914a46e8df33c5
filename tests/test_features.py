"""Feature maps of frozen backbones: the layers asked for, in that order, never trained."""

import pytest
import timm
import torch

from defects.config import BackboneConfig
from defects.errors import UserError
from defects.models.parts.backbone import Features, Trunk

RESNET = BackboneConfig(name="test_resnet", weights="none")


@pytest.mark.parametrize(
    ("name", "layers", "size", "channels", "grids"),
    [
        ("test_resnet", None, (64, 96), [48, 192], [(8, 12), (4, 6)]),
        ("test_efficientnet", None, (64, 64), [32, 48], [(8, 8), (4, 4)]),
        ("test_resnet", ["layer3", "layer1"], (64, 64), [192, 32], [(4, 4), (16, 16)]),
        ("test_vit", None, (160, 160), [64], [(10, 10)]),
    ],
)
def test_layers_come_in_the_order_asked_for(name, layers, size, channels, grids):
    features = Features(BackboneConfig(name=name, weights="none"), layers, size)
    maps = features(torch.rand(2, 3, *size))
    assert features.channels == channels == [found.shape[1] for found in maps]
    assert features.grids == grids == [tuple(found.shape[2:]) for found in maps]


def test_maps_are_those_of_the_whole_network():
    """Layers deep inside, with activations that work in place after them."""
    network = timm.create_model("vgg11", num_classes=0).eval()
    layers, seen = ["features.0", "features.1", "features.6"], {}
    for layer in layers:
        keep = network.get_submodule(layer)
        keep.register_forward_hook(lambda _m, _i, found, layer=layer: seen.update({layer: found.clone()}))
    images = torch.rand(1, 3, 32, 32)
    features = Features(BackboneConfig(name="vgg11", weights="none"), layers, (32, 32))
    own = {name.split("trunk.")[-1]: value for name, value in features.network.state_dict().items()}
    network.load_state_dict(own, strict=False)
    network.forward_features(features.normalize(images))
    # What an in-place ReLU leaves of the layer before it is what that layer hands on.
    expected = [seen["features.0"].relu(), seen["features.1"], seen["features.6"]]
    found = features(images)
    assert torch.allclose(found[0].relu(), expected[0], atol=1e-6)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("test_resnet", ["layer1", "layer2"]),  # activations of their own after the normalisation
        ("test_efficientnet", ["blocks.0.0.bn1", "blocks.1"]),  # activations within it
        (
            "test_resnet",
            ["layer1.0.conv1", "layer2"],
        ),  # the convolution is asked for
    ],
)
def test_normalisation_is_folded_without_changing_the_maps(name, layers):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    seen = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, found, layer=layer: seen.update({layer: found.clone()})
        )
    images = torch.rand(2, 3, 64, 64)
    network.forward_features(images)
    expected = [seen[layer] for layer in layers]
    trunk = Trunk(network, layers)
    folded = [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(folded) == ("layer1.0.conv1" in layers)
    for found, whole in zip(trunk(images), expected, strict=True):
        assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_the_network_is_cut_after_the_last_layer():
    count = {
        layer: sum(weights.numel() for weights in Features(RESNET, [layer], (64, 64)).parameters())
        for layer in ("layer1", "layer3")
    }
    assert count["layer1"] < count["layer3"]


def test_nothing_in_it_learns():
    features = Features(RESNET, None, (32, 32)).train()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    maps = features(torch.rand(4, 3, 32, 32))
    assert not any(found.requires_grad for found in maps)
    assert not any(weights.requires_grad for weights in features.parameters())
    assert all(torch.equal(value, before[name]) for name, value in features.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "layers", "size", "parts"),
    [
        (RESNET, ["layer9"], (64, 64), ["layer9", "layer1, "]),
        (RESNET, None, (16, 64), ["data.image_size=[16, 64]", "two strides"]),
        (
            BackboneConfig(name="deit_tiny_patch16_224", weights="none"),
            None,
            (64, 70),
            ["takes no images of 64x70 pixels", "multiples of 16 pixels", "[224, 224]"],
        ),
        (None, None, (64, 64), ["model.backbone is missing"]),
        (BackboneConfig(name="resnet_50", weights="none"), None, (64, 64), ["timm has no such model"]),
    ],
)
def test_what_cannot_be_had_is_named(backbone, layers, size, parts):
    with pytest.raises(UserError) as caught:
        Features(backbone, layers, size)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)
