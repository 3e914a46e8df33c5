"""Settings as people write them: YAML scalars that wait for the type of their setting, checked by pydantic.

PyYAML follows YAML 1.1, which reads `no` as False, `010` as 8 and `2024-05-01` as a date whatever they are
written for. Here a plain scalar stays text until the type of its setting is known; where any value may stand,
numbers, true, false and null are read as in YAML 1.2. What is wrong is said in one line.
"""

import difflib
import math
import re
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from defects.messages import UserError

Model = TypeVar("Model", bound=BaseModel)

CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # control characters, in names of files and folders a mistake
LONGEST_VALUE = 200  # letters of a refused value in a message
# What is to be written instead, by pydantic's types of errors.
EXPECTED_FORMS = {
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
LIST_ERRORS = {"tuple_type", "list_type", "too_long", "too_short", "missing"}
NULLS = {"", "~", "null", "Null", "NULL", "None"}
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# A leading zero makes a part number or a class: `010` is left to the setting, which may want a number.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")


# --- YAML ---------------------------------------------------------------------------------------------------


class Written(str):
    """A plain scalar of a file, or what follows `--set key=`, before the type of its setting is known."""


def parse_yaml(text: str) -> Any:
    """Dicts with text keys, lists, `Written` for plain scalars and str for quoted ones.

    Raises ValueError, in one line, for what is no YAML, endless, names a key twice or would make objects.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # its own, and what depth raises inside it
        raise ValueError(" ".join(str(error).split())) from None


def dump_yaml(value: Any, in_one_line: bool = False) -> str:
    """Text that `parse_yaml` and `plain_value` read as `value` again: plain Python values only."""
    if in_one_line:
        text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=float("inf"))
        return text.strip()[1:-1]
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def plain_value(text: str) -> bool | int | float | str | None:
    """A plain scalar where any value may stand: null, true, false or a finite number of YAML 1.2, or text.

    None is null too, as people write it who know Python.
    """
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text):
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        return int(text, base)
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return str(text)


def without_quotes(text: str) -> str:
    """What stands between a pair of quotes around the whole text; backslashes mean themselves."""
    quote = text[:1]
    if len(text) < 2 or quote not in ("'", '"') or text[-1] != quote:
        return str(text)
    inner = text[1:-1]
    if quote == "'":
        inner = inner.replace("''", "\0")
    if quote in inner:
        return str(text)
    return inner.replace("\0", "'")


class _Loader(yaml.SafeLoader):
    """Mappings, lists and text; other tags are refused."""

    yaml_implicit_resolvers = {
        "<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))],
        None: [("!written", re.compile(""))],
    }
    yaml_constructors = {
        name: yaml.SafeLoader.yaml_constructors[name]
        for name in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:str", None)
    } | {"!written": lambda loader, node: Written(node.value)}

    def __init__(self, stream: str):
        super().__init__(stream)
        self.flattened: set[int] = set()

    def construct_document(self, node: yaml.Node) -> Any:
        """All at once: what contains itself is refused only then."""
        return self.construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        self.flatten_mapping(node)
        return {
            str(self.construct_object(key)): self.construct_object(value, deep=deep)
            for key, value in node.value
        }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<: *other` stands for in its place; once, since the node then holds keys of both."""
        if id(node) in self.flattened:
            return
        self.flattened.add(id(node))
        self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(problem=f"the key in line {line} is no text")
            if key.value in lines:
                twice = f"{key.value} is given twice, in lines {lines[key.value]} and {line}: drop one"
                raise yaml.constructor.ConstructorError(problem=twice)
            lines[key.value] = line


class _Dumper(yaml.SafeDumper):
    """Quotes all text that would be read as something else, by YAML 1.1 or by `plain_value`."""


for _pattern in (INTEGER, FLOAT, re.compile("None")):
    _Dumper.add_implicit_resolver("!other", re.compile(f"^(?:{_pattern.pattern})$"), None)


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes where text holds line ends of Unicode, which YAML reads as spaces elsewhere."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


# --- types of settings --------------------------------------------------------------------------------------


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
    kind = problem["type"]
    place = problem["loc"]
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
    is_list_as_text = kind in EXPECTED_FORMS and isinstance(value, Written) and _list_length(annotation) > 0
    if kind in LIST_ERRORS or is_list_as_text:
        message = f"write {_list_form(annotation)}"
    elif kind in EXPECTED_FORMS:
        message = f"write {EXPECTED_FORMS[kind]}"
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
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = section_of(field.annotation)
        if section:
            keys += _known_keys(section, f"{prefix}{name}.")
    return keys
