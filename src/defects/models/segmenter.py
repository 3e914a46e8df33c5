"""Supervised segmenter: any decoder of segmentation-models-pytorch over any timm encoder."""

from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch import nn
from torch.nn import functional

from defects.config_schema import BackboneConfig, Fraction, Share
from defects.messages import UserError
from defects.models.base import Batch, Detector, pad_to_multiple
from defects.models.features import REFUSALS, Normalize, create_backbone, in_one_line, size_arguments
from defects.models.inside import LOWEST, clear_outside, mean_inside, mean_of_largest, split_inside

DECODER_STRIDE_PIXELS = 32  # heights and widths that can be halved five times are multiples of it
# DPT stands on plain transformers alone, by another kind of encoder.
DECODERS = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name != "dpt"]


class Segmenter(Detector):
    """The map holds the pixel probabilities of each class; the mean logit of the surest pixels is its score.

    Whether there is any defect is the score of the surest class. Defective images without a mask teach
    nothing. Sides that are no multiples of 32 are filled up by repeating the border, and cropped back. The
    losses are the library's: binary cross entropy with a share of soft Dice, Lovasz hinge (Berman et al.
    2018), or focal (Lin et al. 2017).
    """

    uses_masks = True
    segments = True

    def __init__(
        self,
        backbone: BackboneConfig | None,
        view_sizes: list[tuple[int, int]],
        targets: tuple[str, ...],
        *,
        decoder: str = "unet",  # of segmentation-models-pytorch: unet, fpn, linknet, deeplabv3plus, ...
        decoder_options: dict[str, Any] | None = None,  # its arguments, such as decoder_channels of a unet
        loss: Literal["bce_dice", "lovasz", "focal"] = "bce_dice",
        dice_share: Fraction = 0.25,  # of bce_dice, the rest is binary cross entropy
        top_share: Share = 0.001,  # of the pixels, whose mean logit is the score
    ):
        super().__init__()
        self.targets = targets
        self.dice_share = dice_share
        self.top_share = top_share
        classes = max(1, len(targets) - 1)
        self.network = _build_network(backbone, view_sizes, decoder, decoder_options or {}, classes)
        self.normalize = Normalize(self.network.encoder.model)
        # A class that the whole batch lacks counts 0 in it: there the cross entropy teaches alone.
        self.dice = DiceLoss("multilabel")
        other_loss = {"lovasz": LovaszLoss, "focal": FocalLoss}.get(loss)
        self.other_loss = other_loss and other_loss("multilabel")  # a loss in place of cross entropy and Dice

    def training_loss(self, batch: Batch) -> Batch:
        logits = self.logits(batch["image"])
        _, inside = split_inside(batch["image"])
        has_mask = batch["masked"][:, 0] > 0
        losses = {"loss": 0 * logits.sum()}  # of all parameters, or distributed training would wait for them
        if has_mask.any():
            judged = None if inside is None else inside[has_mask]
            losses = self._losses(logits[has_mask], batch["mask"][has_mask], judged)
        return losses | {"score": self.score(logits, inside).detach()}

    def validation(self, batch: Batch) -> Batch:
        """The losses, and Dice at 0.5 over pairs of image and class, empty against empty counting 1.

        Only of images whose mask is known, as in training.
        """
        logits = self.logits(batch["image"])
        _, inside = split_inside(batch["image"])
        score = {"score": self.score(logits, inside)}
        has_mask = batch["masked"][:, 0] > 0
        if not has_mask.any():
            return score
        logits = logits[has_mask]
        truth = batch["mask"][has_mask]
        predicted = (logits > 0).float()
        overlap = (predicted * truth).sum((2, 3))
        total = (predicted + truth).sum((2, 3))
        dice = torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0).mean()
        judged = None if inside is None else inside[has_mask]
        return score | self._losses(logits, truth, judged) | {"dice": dice}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(images)
        _, inside = split_inside(images)
        return self.score(logits, inside), logits.sigmoid()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """[B, K, H, W], LOWEST outside the region of interest."""
        colours, inside = split_inside(images)
        height, width = images.shape[2:]
        padded = pad_to_multiple(self.normalize(colours), DECODER_STRIDE_PIXELS)
        logits = self.network(padded)[..., :height, :width].float()
        return clear_outside(logits, inside, LOWEST)

    def score(self, logits: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """[B, K, H, W] -> [B, C]"""
        pixels = logits.flatten(2)
        count = max(1, round(self.top_share * pixels.shape[2]))
        judged = None if inside is None else inside.flatten(2)
        scores = mean_of_largest(pixels, count, judged, is_share=True)
        return torch.cat([scores, scores.amax(1, keepdim=True)], 1) if len(self.targets) > 1 else scores

    def _losses(self, logits: torch.Tensor, masks: torch.Tensor, inside: torch.Tensor | None) -> Batch:
        """Outside logits are LOWEST and masks 0, which costs nothing and teaches nothing."""
        if self.other_loss is not None:
            return {"loss": self.other_loss(logits, masks)}
        costs = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        bce = mean_inside(costs, inside)
        dice = self.dice(logits, masks)
        loss = (1 - self.dice_share) * bce + self.dice_share * dice
        return {"loss": loss, "bce": bce.detach(), "soft_dice": dice.detach()}


def _build_network(
    backbone: BackboneConfig | None,
    view_sizes: list[tuple[int, int]],
    decoder: str,
    decoder_options: dict[str, Any],
    classes: int,
) -> nn.Module:
    """Raises UserError for an unknown decoder, and for encoders and image sizes that it cannot stand on."""
    if decoder.lower() not in DECODERS:
        raise UserError(f"model.options.decoder={decoder}: the decoders are {', '.join(DECODERS)}")
    create_backbone(backbone and backbone.model_copy(update={"weights": "none"}), num_classes=0)
    sizes = [tuple(side + -side % DECODER_STRIDE_PIXELS for side in size) for size in view_sizes]
    reasons = []
    for argument in size_arguments(backbone.name, sizes[0]):
        try:
            network = smp.create_model(
                decoder,
                f"tu-{backbone.name}",
                encoder_weights=None,
                classes=classes,
                **decoder_options,
                **argument,
            )
            for size in sizes:
                with torch.no_grad():
                    network.eval()(torch.zeros(1, 3, *size))
        except REFUSALS as error:
            reasons.append(in_one_line(error))
            continue
        encoder = network.encoder.model
        stages = encoder.feature_info.out_indices
        weights = create_backbone(backbone, features_only=True, out_indices=stages, **argument)
        encoder.load_state_dict(weights.state_dict())
        return network.train()
    height, width = view_sizes[0]
    raise UserError(
        f"model.backbone.name={backbone.name} does not suit the decoder {decoder} for images of "
        f"{height}x{width}: {reasons[0]}"
    )


DETECTOR = Segmenter
