"""What an output was made from: settings by their dotted names, and contents of files.

A stamp is {"settings": {name: value}, "files": {name: sha256 or None}}: plain values, for JSON and for
checkpoints. Settings count unless they are excluded by name, so one that is added later makes outputs stale
until somebody decides that it does not change them.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from defects.config_schema import REMOVED_SETTINGS, config_class, resolve
from defects.data.folder_scan import scan_folder
from defects.data.layouts import layout_names
from defects.files import sha256
from defects.messages import shorten_names
from defects.settings import section_of, show_value

# Data settings whose effect images.csv holds, or which change no image.
ABOUT_THE_INDEX = {
    "data.name",
    "data.category",
    "data.source",
    "data.root",
    "data.sample_submission",
    "data.answers",
    "data.annotations",
    "data.annotation_format",
    "data.use_test_as",
    *(f"data.{name}" for name in layout_names()),
    "data.kaggle",
    "data.external_data",
    "data.pretrained_is_external",
    "data.contradictions",
    "data.bad_masks",
    "data.unlisted_classes",
    "data.inverted_masks",
    "data.pixel_size_mm",
}
# Settings that name files: what counts is what these hold, wherever they lie.
ROOT_SETTINGS = ("data.roi.mask", "data.roi.folder")  # relative to data.root
FILE_SETTINGS = (
    *ROOT_SETTINGS,
    "model.backbone.weights",
    "model.options.teacher",
    "model.options.textures",
    "model.options.penalty",
)

Stamp = dict[str, dict[str, Any]]


def settings_but(section: BaseModel, excluded: set[str], prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted name, less the names in `excluded` and what is below them.

    `prefix` is the name of a section with its dot, and empty for the whole config.
    """
    return _flat(section.model_dump(mode="json"), excluded, prefix)


def file_contents(settings: dict[str, Any], root: Path) -> dict[str, str | None]:
    """Of the files and folders that these settings name; None where there is none, or none any more.

    `root` is data.root.
    """
    contents = {}
    for name in FILE_SETTINGS:
        path = settings.get(name)
        if path is not None and name in ROOT_SETTINGS:
            contents[name] = masks_sha256(resolve(root) / Path(path).expanduser())
        elif path is not None:
            contents[name] = content_of(path)
    return contents


def masks_sha256(path: Path) -> str | None:
    """Of a mask, or of the names and contents of the masks in a folder; None if there is neither.

    Masks drawn anew may have the size of the old ones.
    """
    if not path.is_dir():
        return content_of(path)
    lines = [f"{image.relative_to(path).as_posix()} {sha256(image)}" for image in scan_folder(path).images]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def content_of(path: Path | str) -> str | None:
    """sha256 of a file, or of the names and sizes in a folder; None if there is neither."""
    path = resolve(path)
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return None
    lines = [f"{item.relative_to(path).as_posix()} {item.stat().st_size}" for item in path.rglob("*")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def differences(then: Any, now: Stamp, but: Collection[str] = ()) -> list[str]:
    """How a stored stamp differs from the present one, in words: `infer.map_size=64 then, 32 now`.

    Settings and files named in `but` may differ. A setting that the stored one lacks had the effect of its
    default; one that this version lacks differs unless it had no effect, as one of an unused layout. Of a
    setting that names a file the content counts, or its text where that file is gone.
    """
    if not is_stamp(then):
        return ["it was written by an earlier version of this program"]
    settings = then["settings"].keys() | now["settings"].keys()
    files = then["files"].keys() | now["files"].keys()
    same_files = {name for name in files if then["files"].get(name) == now["files"].get(name) is not None}
    data_keys = {name.split(".")[1] for name in now["settings"] if name.startswith("data.")}
    unused_layouts = tuple(f"data.{name}." for name in layout_names() if name not in data_keys)
    defaults = _flat_defaults(config_class({"data": dict.fromkeys(data_keys)}), "")
    changes = []
    for name in sorted(files - same_files - set(but)):
        before = then["files"].get(name)
        after = now["files"].get(name)
        if (before and after) or (before != after and name not in settings):
            changes.append(f"{name} has changed")
    for name in sorted(settings - same_files - set(but)):
        if name.startswith(unused_layouts):
            continue
        before = then["settings"].get(name, defaults.get(name, PydanticUndefined))
        after = now["settings"].get(name, REMOVED_SETTINGS.get(name, PydanticUndefined))
        if before != after:
            changes.append(f"{name}={_show(before)} then, {_show(after)} now")
    return changes


def is_stamp(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), dict) for key in ("settings", "files"))


def join_differences(changes: list[str]) -> str:
    """Differences for a message."""
    return shorten_names(changes, "; ")


def _flat(values: dict[str, Any], excluded: set[str], prefix: str) -> dict[str, Any]:
    """Nested values by dotted name."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in excluded:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, excluded, f"{name}.")
        else:
            flat[name] = value
    return flat


def _flat_defaults(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """Defaults of all settings of a section by dotted name."""
    flat = {}
    for key, field in model.model_fields.items():
        name = f"{prefix}{key}"
        section = section_of(field.annotation)
        if field.default is None or section is None:
            default = field.get_default(call_default_factory=True)
            flat[name] = list(default) if isinstance(default, tuple) else default
        else:
            flat |= _flat_defaults(section, f"{name}.")
    return flat


def _show(value: Any) -> str:
    if value is PydanticUndefined:
        return "(not set)"
    return value if isinstance(value, str) else show_value(value)
