"""YAML 1.2 as people expect it: `3e-4` is a number, `on` and `no` are text, a repeated key is an error."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from launcher.errors import ConfigError

# The core schema of YAML 1.2 (section 10.3.2). PyYAML's own resolvers are those of YAML 1.1.
_RESOLVERS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing a key that stands in it twice."""
        first_lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"line {line}: a key must be plain text. Put it in quotes if it looks like a number.")
            if key_node.value in first_lines:
                raise ConfigError(
                    f"line {line}: the key '{key_node.value}' stands on line {first_lines[key_node.value]} "
                    "already. Remove one of them."
                )
            first_lines[key_node.value] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time instead of as anchors."""
        return True


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    """Keep short lists of plain values, such as betas, on one line."""
    flow = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(list, _represent_list)
for _tag, _pattern, _first in _RESOLVERS:
    _compiled = re.compile(rf"^(?:{_pattern})$")
    # The loader knows 1.2 only. The dumper quotes what either version would misread, so that the text it
    # writes means the same to every reader.
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _compiled, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _compiled, list(_first))


def parse_yaml(text: str) -> Any:
    """Read one YAML document into plain dicts, lists, text, numbers, booleans and null.

    Raises:
        ConfigError: Malformed, a repeated key, a number that is not finite, or a value of no plain kind. The
            text names the line or the key; the caller adds the file.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ConfigError(f"{line}not readable as YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not readable as YAML: {str(error).splitlines()[0]}.") from error
    _require_plain(tree, "", ())
    return tree


def dump_yaml(tree: Any) -> str:
    """Write plain data as YAML, keys in the order in which they stand."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _require_plain(value: Any, path: str, ancestors: tuple[int, ...]) -> None:
    where = f"'{path}'" if path else "the value"
    if id(value) in ancestors:
        raise ConfigError(f"{where} contains itself. Write the values out.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}, and must be a finite number.")
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(item, f"{path}.{key}" if path else key, (*ancestors, id(value)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_plain(item, f"{path}.{index}" if path else str(index), (*ancestors, id(value)))
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{where} is a YAML {type(value).__name__}, which no setting takes. Write it in quotes.")
