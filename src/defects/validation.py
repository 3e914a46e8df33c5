"""Settings checked by pydantic, and what is wrong with them in one line."""

import difflib
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from defects.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

MOST_VALUES = 100_000  # of a config; a few lines of YAML can stand for billions


class Section(BaseModel):
    """Unknown keys are errors: a mistyped setting must never be ignored silently."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def parse_yaml(text: str) -> Any:
    """Plain values. Raises ValueError, in one line, for what is no YAML, endless, or would make objects."""
    try:
        values = yaml.safe_load(text)
    except Exception as error:  # its own, and what dates, numbers, tags and depth raise inside it
        raise ValueError(" ".join(str(error).split())) from None
    waiting, count = [values], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        if count > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return values


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Fill `model`; a UserError in one line instead of pydantic's report."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors()]
        raise UserError(f"{where}: {'; '.join(problems)}") from None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _known_keys(model), n=1, cutoff=0.4)
        return f"unknown key {key}, did you mean {near[0]}?" if near else f"unknown key {key}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}={problem['input']!r}: {message}" if key else message


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys
