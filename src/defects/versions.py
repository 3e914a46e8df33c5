"""Installed versions of packages against the ranges of requirements.txt and requirements-cluster.txt."""

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from defects.messages import UserError, shorten_names

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
CLUSTER_REQUIREMENTS = REQUIREMENTS.with_name("requirements-cluster.txt")
# The form of every line but comments, `name>=least,<below`. The library packaging reads any form, but takes
# 15 ms to import.
RANGE = re.compile(r"^([\w.-]+)>=([\d.]+),<([\d.]+)\s*(?:#|$)", re.MULTILINE)
# What most commands import. What few need beyond that is checked where it is used.
CORE_PACKAGES = (
    "accelerate",
    "albumentations",
    "filelock",
    "jinja2",
    "matplotlib",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "psutil",
    "pydantic",
    "pyyaml",
    "scikit-learn",
    "scipy",
    "segmentation-models-pytorch",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
)
EXPORT_PACKAGES = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")


class VersionRange(NamedTuple):
    """Releases: `least` is the oldest that fits, `below` the first that does not."""

    text: str  # such as `>=2.6,<3`
    least: tuple[int, ...]
    below: tuple[int, ...]


def read_ranges(path: Path = REQUIREMENTS) -> dict[str, VersionRange]:
    """The ranges of a requirements file, by the names of packages in lower case."""
    ranges = {}
    for name, least, below in RANGE.findall(path.read_text(encoding="utf-8")):
        text = f">={least},<{below}"
        ranges[name.lower()] = VersionRange(text, parse_release(least), parse_release(below))
    return ranges


def parse_release(text: str) -> tuple[int, ...]:
    """The numbers at the start of a version: of `2.6.0+cu124` (2, 6, 0), of `4.10.0.84` four."""
    return tuple(int(number) for number in re.match(r"\d+(\.\d+)*", text)[0].split("."))


def check_versions(packages: Iterable[str] = CORE_PACKAGES, path: Path | None = None) -> None:
    """Raise UserError where an installed version lies outside its range in `path`, or in requirements.txt.

    A missing package is no fault here: a PC that only predicts has few. It may also have src/ alone, without
    requirements.txt; then there is nothing to compare with.
    """
    path = REQUIREMENTS if path is None else path
    if not path.exists():
        return
    ranges = read_ranges(path)
    outside = []
    for package in packages:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        fitting = ranges[package]
        if not fitting.least <= parse_release(installed) < fitting.below:
            outside.append(f"{package} {installed} (needs {fitting.text})")
    if outside:
        raise UserError(
            f"installed versions do not fit: {shorten_names(outside)}; run pip install -r {path.name}"
        )
