"""Overrides of a configuration from the command line: `section.key=value`, the value being YAML."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from launcher.errors import ConfigError
from launcher.report.units import plural
from launcher.yaml_file import parse_yaml

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set each override in a copy of a configuration tree, the later ones winning.

    Args:
        tree: Nested dicts and lists, as read from a file.
        overrides: Texts such as `train.max_steps=100` or `sources.0.path=book.txt`.

    Raises:
        ConfigError: An override is malformed or points into something that has no parts.
    """
    result = copy.deepcopy(tree)
    for override in overrides:
        key, value = _parse(override)
        _set(result, key.split("."), value, override)
    return result


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"override '{override}': write it as section.key=value, without spaces around the '='.")
    try:
        return key, parse_yaml(text)
    except ConfigError as error:
        reason = str(error).removeprefix("line 1: ")
        reason = f"the value is {reason}" if reason.startswith("not readable") else reason
        raise ConfigError(f"override '{override}': {reason}") from error


def _set(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    target: Any = tree
    for depth, key in enumerate(keys):
        slot = _slot(target, key, ".".join(keys[:depth]), override)
        if depth == len(keys) - 1:
            target[slot] = value
            return
        if isinstance(target, dict) and target.get(key) is None:
            if keys[depth + 1].isdigit():
                path = ".".join(keys[: depth + 1])
                raise ConfigError(
                    f"override '{override}': the file sets no list '{path}' whose element {keys[depth + 1]} "
                    f"could be changed. Give the whole list, {path}=[...]."
                )
            target[key] = {}
        target = target[slot]


def _slot(target: Any, key: str, path: str, override: str) -> str | int:
    if isinstance(target, dict):
        return key
    if not isinstance(target, list):
        raise ConfigError(f"override '{override}': '{path}' is {target!r} and has no part '{key}'.")
    if not key.isdigit():
        raise ConfigError(f"override '{override}': '{path}' is a list, so the next part is a position, as in {path}.0.")
    if int(key) >= len(target):
        raise ConfigError(
            f"override '{override}': '{path}' has {plural(len(target), 'element')}, counted from 0, so there is no "
            f"{path}.{key}."
        )
    return int(key)
