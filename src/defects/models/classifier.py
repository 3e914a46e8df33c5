"""Supervised classifier: any timm network with one logit per target."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from defects.config import Config, Fraction, Section, validate
from defects.models.base import Batch, Detector
from defects.models.parts.backbone import Normalize, create_backbone


class ClassifierOptions(Section):
    loss: Literal["bce", "focal"] = "bce"
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0  # Lin et al. 2017, section 3.2; no class weight
    drop_rate: Fraction = 0.2
    drop_path_rate: Fraction = 0.0
    global_pool: Literal["avg", "max", "avgmax"] | None = None  # max: a small defect is not averaged away


class Classifier(Detector):
    """The raw score is the logit, one for each class of defects and one for any; there is no map."""

    def __init__(self, config: Config):
        super().__init__()
        self.options = validate(ClassifierOptions, config.model.options, "model.options")
        # Only what is set: not every network takes each of these.
        options = self.options.model_dump(include={"drop_rate", "drop_path_rate", "global_pool"})
        arguments = {name: value for name, value in options.items() if value}
        self.targets = config.data.targets
        self.network = create_backbone(config.model.backbone, num_classes=len(self.targets), **arguments)
        self.normalize = Normalize(self.network)
        # timm draws EfficientNet heads from U(-1, 1) / sqrt(classes): logits of +-10 for a single class.
        for parameter in self.network.get_classifier().parameters():
            nn.init.zeros_(parameter)

    def training_loss(self, batch: Batch) -> Batch:
        logits, label = self(batch["image"])[0], batch["label"]
        if self.options.loss == "focal":
            losses = sigmoid_focal_loss(logits, label, alpha=-1, gamma=self.options.focal_gamma)
        else:
            losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
        return {"loss": (losses * batch["weight"]).mean(), "score": logits.detach()}

    def validation(self, batch: Batch) -> Batch:
        return self.training_loss(batch)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.network(self.normalize(images)), None


DETECTOR = Classifier
