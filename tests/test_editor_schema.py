"""JSON schemas of the configuration files."""

import json

import pytest
import yaml

from defects.config_schema import ROOT
from defects.editor_schema import (
    SCHEMA_PATH,
    SWEEP_SCHEMA_PATH,
    build_config_schema,
    build_sweep_schema,
    schema_text,
)

FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def schema_of(path):
    """What the first line of a YAML file names."""
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# yaml-language-server: $schema="), path
    return path.parent / first_line.partition("=")[2]


def without_defaults(schema):
    """Without `additionalProperties: true`, which means nothing and which pydantic 2.10 leaves out."""
    if isinstance(schema, list):
        return [without_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_defaults(part)
        for key, part in schema.items()
        if (key, part) != ("additionalProperties", True)
    }


def problems(path, values) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(path.read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(values)]


@pytest.mark.parametrize(
    ("path", "build"), [(SCHEMA_PATH, build_config_schema), (SWEEP_SCHEMA_PATH, build_sweep_schema)]
)
def test_editor_schema_is_current(path, build):
    written = json.loads(path.read_text(encoding="utf-8"))
    built = json.loads(schema_text(build()))
    assert without_defaults(written) == without_defaults(built), "run python configs/make_schema.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_editor_schema_fits_every_shipped_file(path):
    assert problems(schema_of(path), yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "'trian' was unexpected"),
        ({"train": {"epochs": -1}}, "-1 is less than the minimum of 0"),
        ({"train": {"optimizer": "sgd"}}, "'sgd' is not one of ['adamw', 'adam']"),
        ({"data": {"source": "folder"}}, "is not valid under any of the given schemas"),
        ({"data": {"folders": {"good": "x"}}}, "is not valid under any of the given schemas"),
        ({"data": {"image_size": [1, 2, 3]}}, "is not valid under any of the given schemas"),
        ({"model": {"name": "classifier", "options": {"lost": 1}}}, "is not valid under any of the given"),
    ],
)
def test_editor_schema_refuses(values, message):
    (problem,) = problems(SCHEMA_PATH, values)
    assert message in problem


@pytest.mark.parametrize(
    "values",
    [
        {"data": "mine", "model": "patch_head", "train": {"epochs": 3}},
        {"data": {"classes": [1, 2], "folders": {"normal": None, "images": "all"}}},
        {"data": {"annotations": "coco.json", "annotation_format": "coco"}},
        {"experiment": 7, "model": {"name": "classifier", "backbone": {"weights": "none"}}},
    ],
)
def test_editor_schema_takes(values):
    assert problems(SCHEMA_PATH, values) == []


def test_editor_schema_says_what_settings_are():
    definitions = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))["definitions"]
    assert "relative to root" in definitions["DataConfig"]["properties"]["sample_submission"]["description"]
