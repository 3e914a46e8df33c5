"""Supervised classifier: any timm network with one logit per target."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from defects.config_schema import BackboneConfig, Fraction, NotNegative
from defects.messages import UserError
from defects.models.base import Batch, Detector
from defects.models.features import Normalize, check_sizes, create_backbone, list_near_layers
from defects.models.inside import cells_inside, split_inside


class Classifier(Detector):
    """The raw score is the logit, one for each class of defects and one for any.

    With `map_loss` the last feature map also learns where the defects are, from the masks that are known (an
    empty one of every normal image), and there is a map: a sigmoid for each cell of that coarse grid. A cell
    is defective if any of its pixels is, and defective and normal cells weigh as much as each other, so that
    small defects count: the map shows where to look, it is no probability of a pixel.
    """

    int8 = True

    def __init__(
        self,
        backbone: BackboneConfig | None,
        view_sizes: list[tuple[int, int]],
        targets: tuple[str, ...],
        *,
        loss: Literal["bce", "focal"] = "bce",
        focal_gamma: NotNegative = 2.0,  # Lin et al. 2017, section 3.2; no class weight
        drop_rate: Fraction = 0.2,
        drop_path_rate: Fraction = 0.0,
        global_pool: Literal["avg", "max", "avgmax"]
        | None = None,  # max: a small defect is not averaged away
        map_loss: NotNegative = 0.0,  # weight of where, beside whether; 0: without masks
        frozen_until: str | None = None,  # a layer of the network: it and those before it keep their weights
    ):
        super().__init__()
        self.targets = targets
        self.loss = loss
        self.focal_gamma = focal_gamma
        self.map_loss = map_loss
        self.uses_masks = map_loss > 0
        # Only what is set: not every network takes all of these.
        arguments = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "global_pool": global_pool}
        arguments = {name: value for name, value in arguments.items() if value}
        self.network = create_backbone(backbone, view_sizes[0], num_classes=len(targets), **arguments)
        check_sizes(self.network, backbone.name, view_sizes)
        self.normalize = Normalize(self.network)
        self._frozen = _freeze(self.network, backbone.name, frozen_until) if frozen_until else []
        # timm draws EfficientNet heads from U(-1, 1) / sqrt(classes): logits of +-10 for a single class.
        for parameter in self.network.get_classifier().parameters():
            nn.init.zeros_(parameter)
        if self.uses_masks:
            channels = _map_channels(self.network, backbone.name, view_sizes[0])
            self.where = nn.Conv2d(channels, max(1, len(targets) - 1), 1)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self._frozen:
            module.eval()  # its batch statistics stay those of ImageNet too
        return self

    def training_loss(self, batch: Batch) -> Batch:
        logits, maps, inside = self._logits(batch["image"])
        label = batch["label"]
        if self.loss == "focal":
            losses = sigmoid_focal_loss(logits, label, alpha=-1, gamma=self.focal_gamma)
        else:
            losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
        loss = losses.mean()
        score = {"score": logits.detach()}
        if maps is None:
            return {"loss": loss} | score
        map_loss = balanced_map_loss(maps, batch["mask"], batch["masked"], inside)
        return {"loss": loss + self.map_loss * map_loss, "map": map_loss.detach()} | score

    def validation(self, batch: Batch) -> Batch:
        return self.training_loss(batch)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, maps, _ = self._logits(images)
        return logits, None if maps is None else maps.sigmoid()

    def _logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """[B, C], with `map_loss` [B, K, h, w], and of those the cells inside, bool [B, 1, h, w]."""
        colours, inside = split_inside(images)
        colours = self.normalize(colours)
        if not self.uses_masks:
            return self.network(colours), None, None
        features = self.network.forward_features(colours)
        maps = self.where(features).float()
        return self.network.forward_head(features), maps, cells_inside(inside, maps.shape[2:])


def _freeze(network: nn.Module, name: str, last: str) -> list[nn.Module]:
    """The modules up to the layer `last`, whose weights get no gradient. UserError if it is not there."""
    modules = dict(network.named_modules())
    if last not in modules:
        raise UserError(
            f"model.options.frozen_until={last}: {name} has no such layer: it has "
            f"{list_near_layers(network, last)}"
        )
    frozen = []
    has_begun = False
    for layer, module in modules.items():
        is_last = layer == last or layer.startswith(f"{last}.")
        if has_begun and not is_last:
            break
        has_begun = is_last
        holds_later_ones = not layer or last.startswith(f"{layer}.")
        if not holds_later_ones:
            frozen.append(module.requires_grad_(False))
    return frozen


def _map_channels(network: nn.Module, name: str, size: tuple[int, int]) -> int:
    """Of the last feature map. Raises UserError for networks that end in tokens or put channels last."""
    with torch.no_grad():
        features = network.eval().forward_features(torch.zeros(1, 3, *size))
    network.train()
    shape = tuple(getattr(features, "shape", ()))[1:]  # some return several
    if len(shape) != 3 or shape[0] != network.num_features:
        raise UserError(
            f"model.options.map_loss: {name} ends in no feature map of channels, height and width (but in "
            f"{shape or 'several outputs'}): name a convolutional model.backbone, or set map_loss to 0"
        )
    return shape[0]


def balanced_map_loss(
    maps: torch.Tensor, masks: torch.Tensor, masked: torch.Tensor, inside: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy of logits [B, K, h, w], half of it in the cells of defects in `masks` [B, K, H, W].

    Images whose mask is not known (0 in `masked` [B, 1]) do not count, nor cells but those of `inside`
    [B, 1, h, w].
    """
    has_mask = masked[..., None, None]
    if inside is not None:
        has_mask = has_mask * inside
    target = functional.adaptive_max_pool2d(masks, maps.shape[2:])
    losses = functional.binary_cross_entropy_with_logits(maps, target, reduction="none")
    total = 0
    for cells in (has_mask * target, has_mask * (1 - target)):
        total = total + 0.5 * (losses * cells).sum() / cells.sum().clamp(min=1)
    return total


DETECTOR = Classifier
