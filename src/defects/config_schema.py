"""What a configuration holds: pydantic models; config.py fills them from YAML and `--set key=value`."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from defects.data.layouts import find_layout_settings, layout_names
from defects.data.roi_settings import RoiSettings
from defects.messages import UserError
from defects.settings import CONTROL, Section, convert, dump_yaml

ROOT = Path(__file__).resolve().parents[2]  # the repository: relative paths of a config start here
# Settings of earlier versions, which old runs still name, with the value at which they had no effect.
REMOVED_SETTINGS = {
    "data.fit": "squash",
    "train.pseudo": None,
    "train.init": None,
    "infer.budget_minutes": None,
    "ensemble.scale": "calibration",
    "train.average": None,
    "train.channels_last": True,
    "train.patience": None,
    "train.save_every": None,
}
# One of these is in the folder of a category: MVTec AD, DAGM 2007, VisA.
LONGEST_NAME_BYTES = 150  # a file system takes 255 for a folder with all that is added to its name


# --- types of settings --------------------------------------------------------------------------------------

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Cost = Annotated[float, Field(gt=0, le=1e12)]
ClaimedRate = Annotated[float, Field(ge=1e-6, lt=1)]  # lower ones need millions of images


def _check_folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[^/\\:]*", name) or CONTROL.search(name):
        raise ValueError("write the name of one folder: first a letter, a digit or _, and no / \\ or : in it")
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise ValueError(f"write a shorter name, {LONGEST_NAME_BYTES} bytes at most")
    return name


def _check_kernel_name(name: str) -> str:
    if not re.fullmatch(r"[\w-]+/[a-z0-9][a-z0-9-]{4,42}", name):
        raise ValueError("write owner/slug, the slug of 5 to 43 small letters, digits and hyphens")
    return name


FolderName = Annotated[str, AfterValidator(_check_folder_name)]  # one folder of output/


def _check_class_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)  # as tables are read
    if name in ("", "defect", "normal"):
        raise ValueError("name a class otherwise: `defect` and `normal` say whether there is any defect")
    if name != name.strip() or not name.isprintable():
        raise ValueError(
            "a class name may hold blanks inside, but none at its ends and no control characters"
        )
    if "+" in name:
        raise ValueError("a class name may hold any letters but +, which joins the classes of one image")
    return name


AnnotationFormat = Literal["coco", "yolo", "voc", "labelme", "label_studio", "csv"]
# YAML reads [1, 2] as numbers.
ClassName = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_class_name)]
# owner/slug; the title, which is made of the slug, and the bundle's name have to be of a length Kaggle takes
KernelName = Annotated[str, AfterValidator(_check_kernel_name)]


# --- the data and the folds ---------------------------------------------------------------------------------


class KaggleConfig(Section):
    """A competition on Kaggle, and how many files its archive must hold (glob -> count).

    `kernel` is for code competitions: your private notebook, which runs src/infer.py there.
    """

    competition: str
    expected: dict[str, int] = {}
    kernel: KernelName | None = None  # owner/slug; its files become the data set <owner/slug>-bundle
    gpu: bool = True  # of the notebook
    wheels: list[str] = ["segmentation-models-pytorch"]  # of constraints.txt, not in Kaggle's image


class DataConfig(Section):
    """A data set. `data_config_class` adds the settings of its layout, as `data.<layout>`."""

    name: FolderName  # output/<name>/ holds images.csv and the folds
    category: FolderName | None = None  # set by --category: `name` then ends with it
    source: str  # a module of defects/data/layouts
    root: Path
    image_size: tuple[Count, Count]  # height, width seen by the detector, in pixels
    symmetries: Literal["rotations", "dihedral", "flips", "none"] = "rotations"  # what keeps a label true
    sample_submission: str | None = None  # relative to root
    answers: Path | None = None  # key of the test images, read by src/evaluate.py only
    annotations: Path | None = (
        None  # folders: what an annotation tool wrote; a file or folder, relative to root
    )
    annotation_format: AnnotationFormat | None = None  # None: recognised by what is in it
    classes: list[ClassName] = []  # of a data set with several kinds of defects; empty: defective or not
    use_test_as: Literal["test", "train"] = "test"  # mvtec: labelled test images may join the training side
    kaggle: KaggleConfig | None = None
    external_data: bool = True  # false: the competition forbids outside images
    pretrained_is_external: bool = False  # whether its rules count ImageNet weights as such
    contradictions: Literal["error", "report"] = "error"  # one picture filed as normal and as defective
    bad_masks: Literal["error", "drop"] = "error"  # masks that are empty or of another size
    unlisted_classes: Literal["error", "drop"] = "error"  # rows of other classes than `classes`; images with
    # no other defects are left out too, since they are not normal
    # Of the camera behind 16-bit files: 2**bits - 1 is white. None: the largest value of the file's type.
    bits: Annotated[int, Field(ge=9, le=16)] | None = None
    inverted_masks: bool | None = None  # masks are white where nothing is; None: all masks together decide
    # Of the original images, for sizes of defects in millimetres; None: sizes are in pixels.
    pixel_size_mm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    roi: RoiSettings | None = None  # what of the images is judged; None: all

    @property
    def targets(self) -> tuple[str, ...]:
        """What can be asked of an image: which classes, and last of all whether there is any defect."""
        return (*self.classes, "defect")

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class is named twice")
        return classes

    @property
    def whole_name(self) -> str:
        """Of the data set with all of its categories."""
        return self.name.removesuffix(f"_{self.category}") if self.category else self.name


def data_config_class(values: Any) -> type[DataConfig]:
    """DataConfig with the settings of the layout that `values`, those of `data`, name as their source.

    Those of any other layout that `values` hold are checked as well, but have no effect and are not stored.
    """
    if not isinstance(values, dict):
        return DataConfig
    source = convert(values.get("source"), str)
    return _with_layouts(source, tuple(name for name in layout_names() if name == source or name in values))


@lru_cache
def _with_layouts(source: str, names: tuple[str, ...]) -> type[DataConfig]:
    fields = {}
    for name in names:
        settings = find_layout_settings(name)
        if settings is not None:
            fields[name] = (settings, Field({}, exclude=name != source))  # {}: their own defaults
    return create_model("DataConfig", __base__=DataConfig, **fields) if fields else DataConfig


class DuplicateConfig(Section):
    """The search for photographs of the same object, on thumbnails of the training images."""

    enabled: bool = True
    thumbnail_size: Annotated[int, Field(ge=32)] = 128  # pixels; images are compared at this size
    neighbours: Count = 16  # candidates per image
    ignore: tuple[int, int, int, int] | None = None  # top, left, bottom, right: a burnt-in text, in pixels
    max_shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.08  # of the side, between two photographs
    min_correlation: Annotated[float, Field(gt=0, lt=1)] = 0.46  # of two photographs of one object, at least
    min_texture: Annotated[float, Field(gt=0, le=1)] = 0.05  # mean square of the texture; below it: flat


class BalanceConfig(Section):
    """How the rare class is brought to `ratio` rare images per normal one on the training side.

    With several classes: each to `ratio` images per one of the most frequent class. `none` plans neither
    copies nor rotations and flips: state those in `augment`.
    """

    method: Literal["oversample", "none"] = "oversample"
    ratio: Annotated[float, Field(gt=0)] = 0.5
    angle_step: Annotated[float, Field(gt=0, le=90)] = 10.0  # degrees; halved until the ratio is reached


class SplitConfig(Section):
    folds: Annotated[int, Field(ge=2)] = 5
    seed: Seed = 0
    group_file: Path | None = None  # CSV image_id,group: coil, part number; takes precedence
    group_pattern: str | None = None  # or a regular expression on image_id whose first group is the group
    duplicates: DuplicateConfig = DuplicateConfig()
    balance: BalanceConfig = BalanceConfig()


# --- the model, its training and what follows ---------------------------------------------------------------


class BackboneConfig(Section):
    name: str  # any timm model
    weights: str = "imagenet"  # imagenet (from the hub), none (random), or a checkpoint file

    @field_validator("weights", mode="before")
    @classmethod
    def _in_any_spelling(cls, weights: Any) -> Any:
        """`None`, `null` and `ImageNet` are understood."""
        word = str(weights).lower()
        if word in ("none", "null"):
            return "none"
        return "imagenet" if word == "imagenet" else weights


class ModelConfig(Section):
    name: str = "classifier"  # a module of defects/models
    backbone: BackboneConfig | None = None  # not every detector has one
    options: dict[str, Any] = {}  # the detector's own settings, checked by the detector


class TrainConfig(Section):
    seed: Seed = 0
    epochs: Annotated[int, Field(ge=0)] = 12  # 0: left as it starts, for comparison
    batch_size: Count = 16
    accumulate: Count = 1  # batches per optimiser step
    steps: Count | None = None  # optimiser steps; rounded up to whole epochs, they replace `epochs`
    least_steps: Count | None = None  # more epochs where images are so few that `epochs` make fewer steps
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    milestones: list[Fraction] | None = None  # lower lr by lr_factor at these shares; None: cosine to 0
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the weight average, None: off
    black_out: Fraction = 0.0  # probability that an image's marked defects are covered up, its label then 0
    paste: Fraction = 0.0  # probability that a normal image gets a marked defect
    synthetic: Fraction = 0.0  # probability that a normal image, if nothing was pasted, gets a drawn defect
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"  # auto: bf16 or fp16 on a GPU
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes; 0: threads of this one, best without a GPU
    inner_holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of the training side kept unseen, 1/n
    select: Literal["last", "inner"] = "last"  # the epoch that is scored: last, or best on the inner part
    validate_every: Count = 1  # look at unseen images every n epochs, and after the last

    @model_validator(mode="after")
    def _inner_needed(self) -> "TrainConfig":
        if self.inner_holdout == 0 and self.select == "inner":
            raise ValueError("train.select=inner needs train.inner_holdout above 0")
        if self.steps is None and 0 < self.epochs < self.warmup_epochs:
            raise ValueError(
                f"train.warmup_epochs={self.warmup_epochs:g} is longer than train.epochs={self.epochs}: "
                "lower it, or train.lr is never reached"
            )
        if self.epochs == 0 and self.select == "inner":
            raise ValueError("train.select=inner needs an epoch to select: train.epochs above 0")
        return self


class InferConfig(Section):
    batch_size: Count = 32
    # average over the label-preserving members of the dihedral group; where it is not set, load_config takes
    # what the detector wants (Detector.uses_tta)
    tta: bool = True
    map_size: Count = 64  # pixels, longer side of the anomaly maps that are kept
    window: tuple[Count, Count] | None = None  # height, width: of larger images windows are scored
    shard: Count = 10_000  # test images, rounded up to whole batches, after which scores are safe


class CostConfig(Section):
    """What an error costs, in any unit: the threshold depends on the ratio of the two alone."""

    escape: Cost  # a defect that passes
    false_alarm: Cost  # a normal part that is rejected
    # Share of defects that is expected where the model is used; None: that of threshold.prior.
    defect_share: Annotated[float, Field(gt=0, lt=1)] | None = None


class ThresholdConfig(Section):
    """How the decision threshold is chosen on out-of-fold scores; `fpr` also where there are no defects."""

    rule: Literal["macro_f1", "expected_fpr", "expected_cost"] = "macro_f1"
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.05  # share of out-of-fold normal images to reject
    prior: Literal["train", "estimated"] = "train"  # share of defects that the threshold is best for
    costs: CostConfig | None = None

    @model_validator(mode="after")
    def _costs_with_their_rule(self) -> "ThresholdConfig":
        if self.rule == "expected_cost" and self.costs is None:
            raise ValueError(
                "threshold.rule=expected_cost needs threshold.costs, such as {escape: 100, false_alarm: 1}"
            )
        if self.rule != "expected_cost" and self.costs is not None:
            raise ValueError(
                f"threshold.costs has no effect with threshold.rule={self.rule}: set "
                "threshold.rule=expected_cost, or threshold.costs=null"
            )
        return self


class ClaimsConfig(Section):
    """What is to be claimed of escapes and false alarms (see docs/claims.md)."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95  # of each bound by itself, one-sided
    escape: ClaimedRate = 0.02  # share of defects that pass
    false_alarm: ClaimedRate = 0.01  # share of normal images that are rejected


class EnsembleConfig(Section):
    """How experiments on the same folds become one score; nothing to do for a single one."""

    method: Literal["auto", "mean", "stack"] = "auto"  # auto: the mean, or what is surely better
    weights: dict[FolderName, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None  # or yours
    compare: bool = True  # first compare training and test images

    @field_validator("weights")
    @classmethod
    def _some_weight(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if not weights:
            return None
        if not sum(weights.values()):
            raise ValueError("the weights sum to zero: give one experiment a weight above 0")
        return weights


class TrackingConfig(Section):
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "defects"


class Config(Section):
    experiment: FolderName  # output/<experiment>/; the config file's name by default
    output: Path = Path("output")
    submissions: Path = Path("submissions")
    data: DataConfig
    split: SplitConfig = SplitConfig()
    model: ModelConfig
    augment: list[dict[str, Any]] = []  # albumentations, in order: {name: HueSaturationValue, p: 0.5, ...}
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()
    threshold: ThresholdConfig = ThresholdConfig()
    claims: ClaimsConfig = ClaimsConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _distinct_folders(self) -> "Config":
        if self.experiment == self.data.name:
            raise ValueError(
                f"experiment and data.name are both {self.experiment!r}: both are folders of output"
            )
        return self

    @model_validator(mode="after")
    def _external_data(self) -> "Config":
        weights = self.model.backbone.weights if self.model.backbone else "none"
        if weights != "none" and self.data.pretrained_is_external and not self.data.external_data:
            raise ValueError(
                f"data.external_data=false refuses model.backbone.weights={weights}, since "
                "data.pretrained_is_external=true: set model.backbone.weights=none"
            )
        return self

    @model_validator(mode="after")
    def _drawn_defects(self) -> "Config":
        if self.train.synthetic and self.data.classes:
            raise ValueError("train.synthetic draws defects of no class: set it to 0 with data.classes")
        return self

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height, width in pixels of what a detector is given: images, or windows of them."""
        height, width = map(min, self.data.image_size, self.infer.window or self.data.image_size)
        return height, width

    @property
    def output_dir(self) -> Path:
        return resolve(self.output)

    @property
    def dataset_dir(self) -> Path:
        return resolve(self.output) / self.data.name

    @property
    def experiment_dir(self) -> Path:
        return resolve(self.output) / self.experiment


# --- places and variants ------------------------------------------------------------------------------------


def resolve(path: Path | str) -> Path:
    """A config's path: absolute, or relative to the repository."""
    return ROOT / Path(path).expanduser()


def config_class(values: dict[str, Any]) -> type[Config]:
    """Config with the settings of the layouts that `values`, those of a whole configuration, name."""
    return _with_data(data_config_class(values.get("data")))


@lru_cache
def _with_data(section: type[DataConfig]) -> type[Config]:
    return Config if section is DataConfig else create_model("Config", __base__=Config, data=(section, ...))


def refuse_external(config: Config, setting: str, folder: Path) -> None:
    """UserError if `folder`, named by `setting`, holds outside images and data.external_data forbids them."""
    root = resolve(config.data.root).resolve()
    if not config.data.external_data and not resolve(folder).resolve().is_relative_to(root):
        raise UserError(
            f"{setting}={folder}: data.external_data=false forbids images from outside {root}; "
            "leave the setting out, or name a folder of the data set"
        )


def as_yaml(config: Config) -> str:
    return dump_yaml(config.model_dump(mode="json"))
