"""Networks and their weights from timm: from the hub, from a file, or explicitly random."""

import difflib
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from defects.config import BackboneConfig, resolve
from defects.errors import UserError


def create_backbone(backbone: BackboneConfig, **arguments) -> nn.Module:
    """A timm model with the configured weights; `arguments` go to timm.create_model.

    Raises UserError for an unknown name and for weights that cannot be had: never random ones instead.
    """
    if not timm.is_model(backbone.name.split(".")[0]):
        near = difflib.get_close_matches(backbone.name, timm.list_models(), n=3, cutoff=0.0)
        raise UserError(
            f"model.backbone.name={backbone.name}: timm has no such model; near: {', '.join(near)}"
        )
    try:
        network = timm.create_model(backbone.name, pretrained=False, **arguments)
    except (TypeError, RuntimeError) as error:
        raise UserError(f"model.backbone.name={backbone.name} cannot be built so: {error}") from None
    if backbone.weights == "none":
        return network
    if backbone.weights == "imagenet":
        return _from_hub(backbone, arguments)
    return _from_file(backbone, resolve(backbone.weights), arguments)


def _from_hub(backbone: BackboneConfig, arguments: dict) -> nn.Module:
    try:
        return timm.create_model(backbone.name, pretrained=True, **arguments)
    except Exception as error:  # the hub's client raises a dozen kinds, from three libraries
        raise UserError(
            f"model.backbone.weights=imagenet: cannot fetch {backbone.name}, nor is it in the local cache "
            f"({type(error).__name__}: {str(error)[:80]}); go online once, give a file "
            "(--set model.backbone.weights=FILE), or train from scratch (--set model.backbone.weights=none)"
        ) from None


def _from_file(backbone: BackboneConfig, path: Path, arguments: dict) -> nn.Module:
    where = f"model.backbone.weights={path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; imagenet and none are the other choices")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        raise UserError(f"{where} is no readable checkpoint ({type(error).__name__})") from None
    wanted = timm.create_model(backbone.name, num_classes=0).state_dict()
    missing = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
    # timm loads what fits and leaves the rest random when the number of classes differs.
    if missing:
        raise UserError(f"{where} does not fit {backbone.name}: {len(missing)} tensors, {missing[0]} first")
    return timm.create_model(
        backbone.name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **arguments
    )


class Normalize(nn.Module):
    """[0, 1] RGB -> what the backbone was trained on."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(model.pretrained_cfg[name]).view(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std
