"""Supervised segmenter: any decoder of segmentation-models-pytorch over any timm encoder."""

from typing import Annotated, Any, Literal

import segmentation_models_pytorch as smp
import torch
from pydantic import Field
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch import nn
from torch.nn import functional

from defects.config import Config, Section, validate
from defects.config_data import Fraction
from defects.errors import UserError
from defects.models.base import Batch, Detector
from defects.models.parts.backbone import (
    REFUSALS,
    Normalize,
    create_backbone,
    in_one_line,
    seen_sizes,
    size_arguments,
)

MULTIPLE = 32  # pixels: sides that five halvings leave whole
# DPT stands on plain transformers alone, by another kind of encoder.
DECODERS = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name != "dpt"]


class SegmenterOptions(Section):
    decoder: str = "unet"  # of segmentation-models-pytorch: unet, fpn, linknet, deeplabv3plus, ...
    decoder_options: dict[str, Any] = {}  # its own arguments, such as decoder_channels of a unet
    loss: Literal["bce_dice", "lovasz", "focal"] = "bce_dice"
    dice_share: Fraction = 0.25  # of bce_dice, the rest is binary cross entropy
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.001  # of the pixels, whose mean logit is the score


class Segmenter(Detector):
    """The map holds the pixel probabilities of each class; the mean logit of the surest pixels is its score.

    Whether there is any defect is the score of the surest class. Defective images without a mask teach
    nothing. Sides that are no multiples of 32 are filled up by repeating the border, and cut back. The losses
    are the library's: binary cross entropy with a share of soft Dice, Lovasz hinge (Berman et al. 2018), or
    focal (Lin et al. 2017).
    """

    uses_masks, segments = True, True

    def __init__(self, config: Config):
        super().__init__()
        self.options = validate(SegmenterOptions, config.model.options, "model.options")
        if config.split.balance.method == "pos_weight":
            raise UserError("split.balance.method=pos_weight weighs labels, not masks: set it to sampler")
        self.targets, classes = config.data.targets, max(1, len(config.data.classes))
        self.network = _build(config, self.options, classes)
        self.normalize = Normalize(self.network.encoder.model)
        # A class that the whole batch lacks counts 0 in it: there the cross entropy teaches alone.
        self.dice = DiceLoss("multilabel")
        whole = {"lovasz": LovaszLoss, "focal": FocalLoss}.get(self.options.loss)
        self.whole = whole and whole("multilabel")

    def training_loss(self, batch: Batch) -> Batch:
        logits, known = self.logits(batch["image"]), batch["masked"][:, 0] > 0
        losses = {"loss": 0 * logits.sum()}  # of all parameters, or distributed training would wait for them
        if known.any():
            losses = self._losses(logits[known], batch["mask"][known])
        return losses | {"score": self.score(logits).detach()}

    def validation(self, batch: Batch) -> Batch:
        """The losses, and Dice at 0.5 over pairs of image and class, empty against empty counting 1.

        Only of images whose mask is known, as in training.
        """
        logits, known = self.logits(batch["image"]), batch["masked"][:, 0] > 0
        found = {"score": self.score(logits)}
        if not known.any():
            return found
        logits, truth = logits[known], batch["mask"][known]
        predicted = (logits > 0).float()
        overlap, total = (value.sum((2, 3)) for value in (predicted * truth, predicted + truth))
        dice = torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0).mean()
        return found | self._losses(logits, truth) | {"dice": dice}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(images)
        return self.score(logits), logits.sigmoid()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """[B, K, H, W]"""
        height, width = images.shape[2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        padded = functional.pad(self.normalize(images), padding, mode="replicate")
        return self.network(padded)[..., :height, :width].float()

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, K, H, W] -> [B, C]"""
        pixels = logits.flatten(2)
        surest = pixels.topk(max(1, round(self.options.top_share * pixels.shape[2])), dim=2)
        scores = surest.values.mean(2)
        return torch.cat([scores, scores.amax(1, keepdim=True)], 1) if len(self.targets) > 1 else scores

    def _losses(self, logits: torch.Tensor, masks: torch.Tensor) -> Batch:
        if self.whole is not None:
            return {"loss": self.whole(logits, masks)}
        share, bce = self.options.dice_share, functional.binary_cross_entropy_with_logits(logits, masks)
        dice = self.dice(logits, masks)
        return {"loss": (1 - share) * bce + share * dice, "bce": bce.detach(), "soft_dice": dice.detach()}


def _build(config: Config, options: SegmenterOptions, classes: int) -> nn.Module:
    """Raises UserError for an unknown decoder, and for encoders and image sizes that it cannot stand on."""
    backbone, decoder = config.model.backbone, options.decoder
    if decoder.lower() not in DECODERS:
        raise UserError(f"model.options.decoder={decoder}: the decoders are {', '.join(DECODERS)}")
    create_backbone(backbone and backbone.model_copy(update={"weights": "none"}), num_classes=0)
    sizes = [(height + -height % MULTIPLE, width + -width % MULTIPLE) for height, width in seen_sizes(config)]
    reasons = []
    for argument in size_arguments(backbone.name, sizes[0]):
        try:
            network = smp.create_model(
                decoder,
                f"tu-{backbone.name}",
                encoder_weights=None,
                classes=classes,
                **options.decoder_options,
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
    height, width = config.seen_size
    raise UserError(
        f"model.backbone.name={backbone.name} does not suit the decoder {decoder} for images of "
        f"{height}x{width}: {reasons[0]}"
    )


DETECTOR = Segmenter
