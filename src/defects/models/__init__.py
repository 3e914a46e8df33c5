"""Detectors, built from a configuration by the names of their modules, which hold their classes as DETECTOR.

This is the one place that knows configurations and detectors: detectors themselves take plain arguments.
"""

import inspect
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import get_type_hints

from pydantic import create_model

from defects.config_schema import Config, refuse_external, resolve
from defects.data.images import windows
from defects.data.transforms import DIHEDRAL
from defects.messages import UserError
from defects.models.base import Batch, Batches, Detector
from defects.settings import Section, validate

__all__ = [
    "Batch",
    "Batches",
    "Detector",
    "build_detector",
    "check_options",
    "detector_names",
    "find_detector",
    "options_section",
]

# Modules that hold no detector but what detectors are made of.
SHARED_PARTS = {
    "base",
    "coreset",
    "features",
    "folding",
    "inside",
    "losses",
    "statistics",
    "synthetic_anomalies",
}


def build_detector(config: Config, pretrained: bool = True) -> Detector:
    """The configured detector; without `pretrained` its weights are left to a checkpoint.

    Raises UserError for settings that it cannot be built from, and for images to learn from that the
    competition's rules forbid.
    """
    detector_class = find_detector(config.model.name)
    backbone = config.model.backbone
    options = check_options(config)
    arguments = {}
    for name in _own_options(detector_class):
        value = getattr(options, name)
        arguments[name] = resolve(value) if isinstance(value, Path) else value
    if not pretrained:
        arguments.pop("teacher", None)  # a distilled network is in the checkpoint too
        backbone = backbone and backbone.model_copy(update={"weights": "none"})
    settings = {
        "backbone": backbone,  # name and weights of a timm model, or None
        "image_size": config.seen_size,  # height, width in pixels of images, or of the windows of them
        "view_sizes": _view_sizes(config),  # that size, and those of its rotations under TTA
        "targets": config.data.targets,  # what scores answer: the classes, and whether there is any defect
        "symmetries": config.data.symmetries,  # rotations and flips that keep a label true
        "expected_fpr": config.threshold.fpr,  # share of unseen normal images above the calibrated score
        "window": config.infer.window,  # height, width in pixels, or None
        "seed": config.train.seed,
    }
    for name in inspect.signature(detector_class).parameters:  # those that it names, and no others
        if name in settings:
            arguments[name] = settings[name]
    detector = detector_class(**arguments)
    if pretrained:
        for setting, folder in detector.outside_images().items():
            refuse_external(config, setting, folder)
    return detector


def detector_names() -> list[str]:
    return sorted({module.name for module in iter_modules(__path__)} - SHARED_PARTS)


def find_detector(name: str) -> type[Detector]:
    """The class of the module `name` of this package; UserError if there is none."""
    names = detector_names()
    if name not in names:
        raise UserError(f"model.name={name}: the detectors are {', '.join(names)}")
    return import_module(f"{__name__}.{name}").DETECTOR


def check_options(config: Config) -> Section:
    """`model.options` with the detector's defaults. Raises UserError for unknown names and bad values."""
    section = options_section(find_detector(config.model.name))
    return validate(section, config.model.options, "model.options")


@cache
def options_section(detector_class: type[Detector]) -> type[Section]:
    """A detector's options as a section of the configuration, made from the signature of its `__init__`."""
    types = get_type_hints(detector_class.__init__, include_extras=True)
    fields = {name: (types[name], default) for name, default in _own_options(detector_class).items()}
    fields |= {name: (section, section()) for name, section in detector_class.other_options.items()}
    return create_model(f"{detector_class.__name__}Options", __base__=Section, **fields)


def _own_options(detector_class: type[Detector]) -> dict[str, object]:
    """The arguments after the `*` of a detector's `__init__`, with their defaults."""
    options = {}
    for name, parameter in inspect.signature(detector_class).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            options[name] = parameter.default
    return options


def _view_sizes(config: Config) -> list[tuple[int, int]]:
    """(height, width) of all that a detector is given to score: windows of images, of quarter turns too."""
    views = DIHEDRAL[config.data.symmetries] if config.infer.tta else [(0, False)]
    sizes = []
    for turns, _ in views:
        size = config.data.image_size[::-1] if turns % 2 else config.data.image_size
        rows, columns = windows(size, config.infer.window)[0]
        sizes.append((rows.stop - rows.start, columns.stop - columns.start))
    return list(dict.fromkeys(sizes))
