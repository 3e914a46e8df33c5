"""Settings checked by pydantic, and what is wrong with them in one line."""

import difflib
import re
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from defects.messages import UserError
from defects.yaml_text import Written, parse_yaml, plain_value, without_quotes

Model = TypeVar("Model", bound=BaseModel)

CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # no name of a file or folder has these, but for mistakes
MOST_SHOWN = 200  # letters of a refused value
# What is to be written instead, by pydantic's types of errors.
WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number, such as 0.5 or 1e-3",
    "float_type": "a number, such as 0.5 or 1e-3",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text; null and nothing are no text, 'null' in quotes is one",
    "path_type": "a path",
    "model_type": "keys and values, {key: value, ...}",
    "model_attributes_type": "keys and values, {key: value, ...}",
    "dict_type": "keys and values, {key: value, ...}, or {} for none",
}
NO_LIST = {"tuple_type", "list_type", "too_long", "too_short", "missing"}  # or one of another length


class Section(BaseModel):
    """Unknown keys are errors: a mistyped setting must never be ignored silently."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_setting(cls, value: Any, info: ValidationInfo) -> Any:
        return convert(value, cls.model_fields[info.field_name].annotation)


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Fill `model`; a UserError in one line instead of pydantic's report."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(model, values, problem) for problem in error.errors())
        raise UserError(f"{where}: {'; '.join(problems)}") from None


def convert(value: Any, annotation: Any) -> Any:
    """`value` with every `Written` scalar in it as what `annotation`, the type of a setting, takes.

    Text stays as written, `128,800` and `(128,800)` are lists, null is None where that is allowed. What does
    not fit is left for pydantic to refuse. Raises ValueError for text that is no path.
    """
    kinds = accepted_kinds(annotation)
    if isinstance(value, Written):
        return _convert_scalar(value, annotation, kinds)
    if isinstance(value, list):
        types = _element_types(kinds, len(value))
        return [convert(item, kind) for item, kind in zip(value, types, strict=True)]
    if isinstance(value, dict) and section_of(annotation) is None:
        kind = value_type(annotation)
        return {key: convert(item, kind) for key, item in value.items()}
    if type(value) in (int, float) and _takes_text(kinds) and not {int, float} & set(kinds):
        return str(value)  # free mappings hold numbers, until a detector says what its options are
    return value


def accepted_kinds(annotation: Any) -> list[Any]:
    """The members of a union, or the one type; without what Annotated adds."""
    if get_origin(annotation) is Annotated:
        return accepted_kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in accepted_kinds(member)]
    return [annotation]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting of this type is, optional or not; None for any other setting."""
    for kind in accepted_kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def setting_type(model: type[BaseModel] | None, name: str) -> Any:
    """The type of a section's setting; Any for one that is unknown, or none of a section."""
    field = model.model_fields.get(name) if model else None
    return field.annotation if field else Any


def value_type(annotation: Any) -> Any:
    """The type of a free mapping's values; Any where nothing is known of them."""
    for kind in accepted_kinds(annotation):
        if get_origin(kind) is dict:
            return get_args(kind)[1]
    return Any


def open_brackets(value: Any, annotation: Any) -> Any:
    """The list or mapping that a `Written` value spells out; text of a text setting is left as it is.

    Raises ValueError for brackets that are not closed and the like.
    """
    is_spelled_out = isinstance(value, Written) and value.startswith(("[", "{"))
    if not is_spelled_out or _takes_text(accepted_kinds(annotation)):
        return value
    return parse_yaml(value)


def _convert_scalar(text: Written, annotation: Any, kinds: list[Any]) -> Any:
    if NoneType in kinds and plain_value(text) is None:
        return None
    if _takes_text(kinds):
        return _as_text(text, kinds)
    if text.startswith(("[", "{")):
        return convert(parse_yaml(text), annotation)
    if any(get_origin(kind) in (list, tuple) for kind in kinds) and text:
        inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        with suppress(ValueError):
            return convert(parse_yaml(f"[{inner}]"), annotation)
    if without_quotes(text) != text:
        return without_quotes(text)
    value = plain_value(text)
    if Any in kinds:
        return value
    # Of true and false pydantic is to judge: for it True is a whole number, and 2.0 no boolean.
    return value if type(value) in (int, float) and bool not in kinds else str(text)


def _as_text(text: Written, kinds: list[Any]) -> str | None:
    if text in ("", "null", "Null", "NULL"):
        return None
    value = without_quotes(text)
    if Path in kinds and CONTROL.search(value):
        raise ValueError("a path holds no control characters")
    return value


def _takes_text(kinds: list[Any]) -> bool:
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return str in kinds or Path in kinds or any(isinstance(word, str) for word in words)


def _element_types(kinds: list[Any], count: int) -> list[Any]:
    for kind in kinds:
        types = get_args(kind)
        if get_origin(kind) is list:
            return count * [types[0]]
        if get_origin(kind) is tuple:
            return [types[min(index, len(types) - 1)] for index in range(count)]
    return count * [Any]


def _explain(model: type[BaseModel], values: dict[str, Any], problem: dict[str, Any]) -> str:
    kind, place = problem["type"], problem["loc"]
    if kind == "missing" and isinstance(place[-1], str):
        return f"{'.'.join(map(str, place))} is missing"
    keys, value = _locate(values, place)
    key = ".".join(keys)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(key, _known_keys(model), n=1, cutoff=0.4)
        return f"unknown key {key}, did you mean {near[0]}?" if near else f"unknown key {key}"
    message = problem["msg"].removeprefix("Value error, ")
    annotation = _type_at(model, keys)
    if kind == "value_error" and section_of(annotation):
        return message  # about several settings, which it names
    if kind in NO_LIST or (kind in WANTED and isinstance(value, Written) and _list_length(annotation)):
        message = f"write {_list_form(annotation)}"
    elif kind in WANTED:
        message = f"write {WANTED[kind]}"
    return f"{key}={show_value(value)}: {message}"


def _locate(values: Any, place: tuple[str | int, ...]) -> tuple[list[str], Any]:
    """The keys of `place` as far as `values` has them, and what is there: pydantic adds parts of its own."""
    keys = []
    for part in place:
        if isinstance(values, dict):
            is_there = part in values
        else:
            is_there = isinstance(values, list) and part in range(len(values))
        if is_there:
            keys.append(str(part))
            values = values[part]
    return keys, values


def _type_at(model: type[BaseModel], keys: list[str]) -> Any:
    """The type of the setting that these keys lead to, or into."""
    annotation: Any = model
    for key in keys:
        section = section_of(annotation)
        if section is None:
            break
        annotation = setting_type(section, key)
    return annotation


def _list_length(annotation: Any) -> int:
    """How many values a setting of this type takes, all numbers; 0 for any number, and for no list."""
    for kind in accepted_kinds(annotation):
        if get_origin(kind) is tuple:
            return len(get_args(kind))
    return 0


def _list_form(annotation: Any) -> str:
    """How a list of this type is written."""
    count = _list_length(annotation)
    if count:
        return f"{count} whole numbers, such as [{', '.join(count * ['64'])}]"
    return "a list, [A, B, ...]"


def show_value(value: Any) -> str:
    """A value of a file as it is written there, in one line, shortened."""
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {show_value(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(show_value, value))}]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, Written) and value.isprintable():
        text = str(value)
    else:
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = section_of(field.annotation)
        if section:
            keys += _known_keys(section, f"{prefix}{name}.")
    return keys
