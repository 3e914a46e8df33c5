"""YAML as people write it: a plain scalar stays text until the type of its setting is known.

PyYAML follows YAML 1.1, which reads `no` as False, `010` as 8 and `2024-05-01` as a date whatever they are
written for. Here they are text, and numbers, true, false and null as in YAML 1.2 where any value may stand.
"""

import math
import re
from typing import Any

import yaml

NULLS = {"", "~", "null", "Null", "NULL", "None"}
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# A leading zero makes a part number or a class: `010` is left to the setting, which may want a number.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")


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
