"""One module per detector; configs name the module (`model.name`), which holds its class as DETECTOR."""

from importlib import import_module
from pkgutil import iter_modules

from defects.config import Config
from defects.errors import UserError
from defects.models.base import Batch, Batches, Detector

__all__ = ["Batch", "Batches", "Detector", "build_detector"]

CONTRACT = {"base", "anomaly"}  # modules that hold no detector; what detectors are made of is in parts


def build_detector(config: Config, pretrained: bool = True) -> Detector:
    """The configured detector; without `pretrained` its weights are left to a checkpoint."""
    known = sorted({module.name for module in iter_modules(__path__) if not module.ispkg} - CONTRACT)
    if config.model.name not in known:
        raise UserError(f"model.name={config.model.name}: the detectors are {', '.join(known)}")
    if not pretrained:
        config = config.model_copy(deep=True)
        config.model.options.pop("teacher", None)  # a distilled network is in the checkpoint too
        if config.model.backbone:
            config.model.backbone.weights = "none"
    return import_module(f"{__name__}.{config.model.name}").DETECTOR(config)
