"""What a config says about the data and the folds: pydantic models, as in config.py, which holds the rest."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator

from defects.data.layouts import find_layout_settings, layout_names
from defects.settings import CONTROL, Section, convert

LONGEST_NAME_BYTES = 150  # a file system takes 255 for a folder with all that is added to its name

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


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


# YAML reads [1, 2] as numbers.
ClassName = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_class_name)]
# owner/slug; the title, which is made of the slug, and the bundle's name have to be of a length Kaggle takes
KernelName = Annotated[str, AfterValidator(_check_kernel_name)]


class KaggleConfig(Section):
    """A competition on Kaggle, and how many files its archive must hold (glob -> count).

    `kernel` is for code competitions: your private notebook, which runs src/infer.py there.
    """

    competition: str
    expected: dict[str, int] = {}
    kernel: KernelName | None = None  # owner/slug; its files become the data set <owner/slug>-bundle
    gpu: bool = True  # of the notebook
    wheels: list[str] = ["segmentation-models-pytorch"]  # of requirements.txt, not in Kaggle's image


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
    inverted_masks: bool | None = None  # masks are white where nothing is; None: told from all masks together

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
