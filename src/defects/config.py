"""What a configuration holds: pydantic models; config_files.py fills them from YAML and `--set key=value`."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from defects.config_data import (
    Count,
    DataConfig,
    FolderName,
    Fraction,
    Seed,
    SplitConfig,
    data_config_class,
)
from defects.messages import UserError
from defects.settings import Section, dump_yaml

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


class ThresholdConfig(Section):
    """How the decision threshold is found on out-of-fold scores; `fpr` also where there are no defects."""

    rule: Literal["macro_f1", "expected_fpr"] = "macro_f1"
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.05  # share of held-out normal images called defective
    prior: Literal["train", "estimated"] = "train"  # share of defects that macro_f1 is best for


class EnsembleConfig(Section):
    """How experiments on the same folds become one score; nothing to do for a single one."""

    method: Literal["auto", "mean", "stack"] = "auto"  # auto: the mean, or what is surely better
    weights: dict[FolderName, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None  # or yours
    compare: bool = True  # first see whether training images can be told from test images

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


def of_category(config: Config, category: str) -> Config:
    """The same experiment on one category: a folder of data.root with a data set and a run of its own."""
    data = config.data.model_copy(
        update={
            "root": config.data.root / category,
            "name": f"{config.data.name}_{category}",
            "category": category,
        }
    )
    return config.model_copy(update={"data": data, "experiment": f"{config.experiment}_{category}"})


def categories(data: DataConfig) -> list[str]:
    """Sub-folders of data.root that hold training images."""
    from defects.data.folder_scan import list_folders  # not on top: it loads OpenCV

    return [folder.name for folder in list_folders(resolve(data.root)) if (folder / "train").is_dir()]


def as_yaml(config: Config) -> str:
    return dump_yaml(config.model_dump(mode="json"))
