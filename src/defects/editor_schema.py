"""JSON schemas of the configuration files, by which editors complete and check them.

`configs/make_schema.py` writes them. A file may hold any part of the settings, so nothing in it is required.
"""

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from defects.config_schema import ROOT, config_class
from defects.data.layouts import layout_names
from defects.models import detector_names, find_detector, options_section
from defects.settings import Section
from defects.training.sweep_jobs import SweepConfig

DIALECT = "http://json-schema.org/draft-07/schema#"  # the latest one that all editors know
SCHEMA_PATH = ROOT / "configs" / "schema.json"
SWEEP_SCHEMA_PATH = ROOT / "configs" / "sweeps" / "schema.json"
# `name: ...  # what it is`: the comment behind a setting.
SETTING_LINE = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)

Schema = dict[str, Any]


def build_config_schema() -> Schema:
    """Of configs/*.yaml, configs/data/*.yaml and configs/models/*.yaml."""
    config = config_class({"data": {name: {} for name in layout_names()}})
    sections = {name: options_section(find_detector(name)) for name in detector_names()}
    schema = _join_schemas([config, *sections.values()])
    definitions = schema["definitions"]
    top = definitions.pop("Config")
    top["properties"]["data"] = _name_or(top["properties"]["data"], "a file of configs/data, without .yaml")
    top["properties"]["model"] = _name_or(
        top["properties"]["model"], "a file of configs/models, without .yaml"
    )
    definitions["DataConfig"]["properties"]["source"]["enum"] = layout_names()
    model = definitions["ModelConfig"]
    model["properties"]["name"]["enum"] = list(sections)
    model["allOf"] = []
    for name, section in sections.items():
        has_name = {"properties": {"name": {"const": name}}, "required": ["name"]}
        options = {"properties": {"options": {"$ref": f"#/definitions/{section.__name__}"}}}
        model["allOf"].append({"if": has_name, "then": options})
    return {"$schema": DIALECT, **top, "definitions": dict(sorted(definitions.items()))}


def build_sweep_schema() -> Schema:
    """Of configs/sweeps/*.yaml."""
    schema = _join_schemas([SweepConfig])
    return {"$schema": DIALECT, **schema["definitions"].pop("SweepConfig"), **schema}


def schema_text(schema: Schema) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _join_schemas(sections: list[type[BaseModel]]) -> Schema:
    """The schemas of all sections, and of those in them, below `definitions`."""
    template = "#/definitions/{model}"
    pairs = [(section, "validation") for section in sections]
    _, schema = models_json_schema(pairs, ref_template=template)
    definitions = {name: _simplify(value) for name, value in schema["$defs"].items()}
    for section in _subclasses(Section):
        properties = definitions.get(section.__name__, {}).get("properties", {})
        for name, comment in _setting_comments(section).items():
            if name in properties:
                properties[name]["description"] = comment
    return {"definitions": definitions}


def _simplify(value: Any) -> Any:
    """A part of a schema without titles and `required`; a text may be written as a number."""
    if isinstance(value, list):
        return [_simplify(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return {"$ref": value["$ref"]}  # what stands beside it has no effect
    simple = {}
    for key, item in value.items():
        if key == "properties":
            simple[key] = {name: _simplify(part) for name, part in item.items()}
        elif key == "prefixItems":
            simple["items"] = _simplify(item)  # as draft 7 has it
        elif key not in ("title", "required"):
            simple[key] = _simplify(item)
    if simple.get("type") == "string" and not simple.keys() & {"enum", "const"}:
        simple["type"] = ["string", "number"]
        simple.pop("format", None)
    return simple


def _name_or(part: Schema, description: str) -> Schema:
    return {"anyOf": [{"type": "string", "description": description}, {"$ref": part["$ref"]}]}


def _subclasses(section: type[BaseModel]) -> list[type[BaseModel]]:
    found = []
    for subclass in section.__subclasses__():
        found += [subclass, *_subclasses(subclass)]
    return found


def _setting_comments(section: type[BaseModel]) -> dict[str, str]:
    """What is said behind each setting in the source; nothing for a section that the program makes."""
    comments = {}
    for base in reversed(section.__mro__):
        if issubclass(base, Section) and base is not Section:
            try:
                comments |= dict(SETTING_LINE.findall(inspect.getsource(base)))
            except (OSError, TypeError):
                continue
    return comments
