"""What of the recipe fits the minutes: this machine's speed, arithmetic, the first plan that is short enough.

The constants are fitted to what 2 quiet cores take for a fold of 582 magnetic tiles of 224x224: 33 s for the
patch head, 10 s for PatchCore, and 119 s for five epochs of a classifier all of whose weights are trained.
Everything but the reading of files is proportional to the pixels, and to the time of the forward pass.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from defects.config_schema import ROOT, Config
from defects.data.images import read_image
from defects.data.transforms import DIHEDRAL
from defects.models import build_detector
from defects.start.description import Size, round_side
from defects.training.loop import count_epochs

RECIPE = ROOT / "configs" / "sweeps" / "recipe.yaml"
NORMAL_ONLY = "patchcore_reduced"  # of the recipe's detectors the one that learns from normal images alone
MEGAPIXEL = 1e6
PROBE_SECONDS = 1.5  # for the forward pass, and for training
PROBE_IMAGES = 8
REFERENCE_FORWARD = 0.16  # seconds a megapixel, of the machine that the constants below were measured on
HEAD_PASSES = 0.4  # forward passes that the heads take to learn from one embedded image
PICK_SECONDS = 5.2e-9  # of PatchCore's coreset, for each patch and pick
CORESET_SHARE = 0.01
CELL = 8 * 8  # pixels of a patch
POOL_SIZE = 1500  # the patch head's default
BANK_PASSES = 1.25  # forward passes that it takes to score an image with a memory bank
FOLD_SECONDS = 1.0  # of each fold, whatever it learns from
EXPORT_SECONDS = 30.0  # with all that follows the training, on the machine of the constants
SLOWEST_MACHINE = 4.0  # times the seconds of the constants, at most, for what does not depend on the images
MARGIN = 0.85  # of the time that is planned with
FEW_FOLDS = 3
REDUCED_CLASSIFIER = ("train.epochs=4", "train.least_steps=100")
REDUCED_HEAD = ("train.steps=150", "model.options.pool_size=750")


@dataclass(frozen=True)
class Speed:
    """Seconds of this machine."""

    forward: float  # for a megapixel
    training: float  # for a megapixel, of the classifier
    reading: float  # for a file


@dataclass(frozen=True)
class Counts:
    """Images."""

    normal: int
    defects: int
    test: int

    @property
    def training(self) -> int:
        return self.normal + self.defects


@dataclass(frozen=True)
class Plan:
    """`settings` of each detector's configuration in configs/models, by its name: `key=value` to change."""

    settings: dict[str, tuple[str, ...]]
    folds: int
    image_size: Size
    seconds: dict[str, float]  # that each detector is expected to take, and `end` for all that follows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        settings = {name: tuple(texts) for name, texts in values["settings"].items()}
        return cls(settings, values["folds"], tuple(values["image_size"]), values["seconds"])

    def describe(self, minutes: float) -> list[str]:
        """Lines for the console."""
        height, width = self.image_size
        count = f"{len(self.settings)} detector{'s' * (len(self.settings) > 1)}"
        lines = [f"plan        {count}, {self.folds} folds, images scaled to {height}x{width}"]
        for name, texts in self.settings.items():
            changes = f" ({', '.join(texts)})" if texts else ""
            lines.append(f"  {name}{changes}: about {format_seconds(self.seconds[name])}")
        total = sum(self.seconds.values())
        least = ", the least that is possible" if total > 60 * minutes else ""
        lines.append(f"  in all about {format_seconds(total)}{least}; --minutes {minutes:g} are allowed")
        return lines


def format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# --- the probe ----------------------------------------------------------------------------------------------


def measure_speed(config: Config, files: list[Path]) -> Speed:
    """Of the classifier's network, with random weights, at data.image_size; and of reading these files."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = build_detector(config, pretrained=False).to(device)
    detector.to(memory_format=torch.channels_last)
    height, width = config.data.image_size
    images = torch.rand(PROBE_IMAGES, 3, height, width, device=device)
    masks = len(config.data.classes) or 1
    batch = {
        "image": images,
        "label": torch.ones(PROBE_IMAGES, len(detector.targets), device=device),
        "mask": torch.ones(PROBE_IMAGES, masks, height, width, device=device),
        "masked": torch.ones(PROBE_IMAGES, 1, device=device),
    }

    def score() -> None:
        with torch.inference_mode():
            detector(images)

    def learn() -> None:
        detector.training_loss(batch)["loss"].backward()

    detector.eval()
    forward = time_pass(score, device)
    detector.train()
    training = time_pass(learn, device)
    megapixels = PROBE_IMAGES * height * width / MEGAPIXEL
    return Speed(forward / megapixels, training / megapixels, time_reading(config, files))


def time_pass(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that `work` takes, once warm: the median of several times, since a machine is rarely quiet."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < PROBE_SECONDS:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_reading(config: Config, files: list[Path]) -> float:
    """Seconds for a file, decoded and resized."""
    sample = files[:: max(1, len(files) // PROBE_IMAGES)][:PROBE_IMAGES]
    start = time.perf_counter()
    for path in sample:
        read_image(path, config.data.image_size, config.data.bits)
    return (time.perf_counter() - start) / len(sample)


# --- arithmetic ---------------------------------------------------------------------------------------------


def estimate_seconds(configs: dict[str, Config], counts: Counts, speed: Speed) -> dict[str, float]:
    """Seconds for all folds of each of these experiments, and `end` for all that follows."""
    slowness = min(max(1.0, speed.forward / REFERENCE_FORWARD), SLOWEST_MACHINE)
    seconds = {}
    longest_fold = 0.0
    for name, config in configs.items():
        folds = config.split.folds
        of_fold = estimate_fold(config, counts, speed)
        of_test = counts.test * estimate_score(config, counts, speed)
        seconds[name] = round(folds * (of_fold + of_test + slowness * FOLD_SECONDS), 1)
        longest_fold = max(longest_fold, of_fold * folds / (folds - 1))
    # The detector to be exported is fitted once more, on all images.
    end = longest_fold + slowness * EXPORT_SECONDS
    if counts.test:
        end += 2 * speed.reading * (counts.training + counts.test)  # training and test images are compared
    return seconds | {"end": round(end, 1)}


def estimate_fold(config: Config, counts: Counts, speed: Speed) -> float:
    """Seconds for a fold, its scores out of fold included."""
    share = 1 - 1 / config.split.folds
    forward = speed.forward * count_megapixels(config) + speed.reading
    normal = share * counts.normal
    learnt = share * counts.training
    out_of_fold = (1 - share) * counts.training * estimate_score(config, counts, speed)
    train = config.train
    if config.model.name == "patchcore":
        height, width = config.data.image_size
        patches = normal * height * width / CELL
        picks = CORESET_SHARE * patches
        machine = speed.forward / REFERENCE_FORWARD
        return normal * forward + machine * PICK_SECONDS * patches * picks + out_of_fold
    if config.model.name == "patch_head":
        pool = min(config.model.options.get("pool_size", POOL_SIZE), train.steps * train.batch_size)
        heads = train.steps * train.batch_size * HEAD_PASSES * speed.forward * count_megapixels(config)
        return learnt * forward + pool * forward + heads + out_of_fold
    rows = share * (counts.normal + max(counts.defects, config.split.balance.ratio * counts.normal))
    training = speed.training * count_megapixels(config) + speed.reading
    steps_of_epoch = max(1, math.floor(rows / train.batch_size))  # the loader drops what fills no batch
    epochs = count_epochs(train, steps_of_epoch)
    return epochs * rows * training + out_of_fold


def estimate_score(config: Config, counts: Counts, speed: Speed) -> float:
    """Seconds for the score of one image by one model."""
    passes = BANK_PASSES if config.model.name == "patchcore" else 1.0
    if config.infer.tta:
        passes = len(DIHEDRAL[config.data.symmetries])
    return passes * speed.forward * count_megapixels(config) + speed.reading


def count_megapixels(config: Config) -> float:
    height, width = config.data.image_size
    return height * width / MEGAPIXEL


# --- the plan -----------------------------------------------------------------------------------------------


def list_plans(
    models: list[str], folds: int, image_size: Size, is_fixed: bool
) -> Iterator[tuple[dict[str, tuple[str, ...]], int, Size]]:
    """Settings of the detectors, folds and image size, from the whole recipe to what takes least.

    The classifier, which takes longest, is left out first. `is_fixed`: folds and size are a person's.
    """
    cheap = [name for name in models if not name.startswith("classifier")]
    few = folds if is_fixed else min(folds, FEW_FOLDS)
    smaller = image_size if is_fixed else scale_size(image_size, 0.75)
    smallest = image_size if is_fixed else scale_size(image_size, 0.5)
    least = folds if is_fixed else 2
    yield with_settings(models), folds, image_size
    if len(cheap) < len(models):
        yield with_settings(models, classifier=REDUCED_CLASSIFIER), folds, image_size
        yield with_settings(cheap), folds, image_size
    yield with_settings(cheap), few, image_size
    yield with_settings(cheap), few, smaller
    yield with_settings(cheap, patch_head=REDUCED_HEAD), few, smaller
    yield with_settings([NORMAL_ONLY]), few, smaller
    yield with_settings([NORMAL_ONLY]), least, smallest


def with_settings(models: list[str], **by_kind: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Settings of each of the models; those of a kind go to the models whose names begin so."""
    settings = {}
    for name in models:
        settings[name] = next((texts for kind, texts in by_kind.items() if name.startswith(kind)), ())
    return settings


def scale_size(image_size: Size, factor: float) -> Size:
    height, width = image_size
    return round_side(factor * height), round_side(factor * width)


def choose_plan(
    models: list[str],
    base: Config,
    is_fixed: bool,
    load: Callable[[str, list[str]], Config],
    counts: Counts,
    speed: Speed,
    seconds: float,
) -> Plan:
    """The first plan of list_plans that takes `seconds` at most, or else the last.

    `base` has folds and image size of the first one. `load` gives the configuration of a model with further
    settings, `key=value`.
    """
    plan = None
    for settings, folds, size in list_plans(models, base.split.folds, base.data.image_size, is_fixed):
        shared = [f"split.folds={folds}", f"data.image_size=[{size[0]}, {size[1]}]"]
        configs = {name: load(name, [*shared, *texts]) for name, texts in settings.items()}
        plan = Plan(settings, folds, size, estimate_seconds(configs, counts, speed))
        if sum(plan.seconds.values()) <= MARGIN * seconds:
            break
    return plan
