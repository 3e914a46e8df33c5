"""One module per detector, and the registry that configs name them by."""

from defects.config import Config
from defects.errors import UserError
from defects.models.base import Batch, Detector
from defects.models.classifier import Classifier

__all__ = ["Batch", "Detector", "build_detector"]

DETECTORS = {"classifier": Classifier}


def build_detector(config: Config, pretrained: bool = True) -> Detector:
    """The configured detector; without `pretrained` its weights are left to a checkpoint."""
    if config.model.name not in DETECTORS:
        raise UserError(f"model.name={config.model.name}: the detectors are {', '.join(DETECTORS)}")
    if not pretrained:
        config = config.model_copy(deep=True)
        config.model.backbone.weights = "none"
    return DETECTORS[config.model.name](config)
