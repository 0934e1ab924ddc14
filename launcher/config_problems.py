"""Pydantic's complaints about a configuration, turned into sentences a person can act on."""

from __future__ import annotations

import json
import re
import types
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from launcher.config_fields import Place, describe, locate, required_keys, suggest

_LONGEST_VALUE_CHARACTERS = 80
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    path: tuple[str, ...]
    """Keys from the top to the value, or to the section whose rule is broken."""
    text: str
    """A sentence or two: the key, its value, the rule, the way out."""
    is_rule: bool
    """A rule about a whole section is broken; its text names the fields."""

    def comes_from(self, key: str) -> bool:
        """Whether an override of this dotted key, rather than the file, has the value that is wrong."""
        keys = tuple(key.split("."))
        if keys == self.path[: len(keys)]:
            return True
        within = keys[: len(self.path)] == self.path
        return within and (not self.is_rule or re.search(rf"\b{keys[-1]}\b", self.text) is not None)


def problems(error: ValidationError, root: type, *, in_file: bool) -> list[Problem]:
    """Everything that is wrong with a configuration.

    Args:
        error: What pydantic says.
        root: Class of the configuration.
        in_file: The configuration stands in a file of the person's own, where a missing key can be added.
    """
    found = [(locate(root, details["loc"]), details) for details in error.errors()]
    found = [(place, details) for place, details in found if not _another_branch_got_further(place, found)]
    listed = [problem for place, details in found for problem in _problems(place, details, root, in_file)]
    return list(dict.fromkeys(listed))


def _another_branch_got_further(place: Place, found: list[tuple[Place, ErrorDetails]]) -> bool:
    if not place.branch:
        return False
    depth = len(place.path)
    return any(len(other.path) > depth and other.path[:depth] == place.path for other, _ in found)


def _problems(place: Place, details: ErrorDetails, root: type, in_file: bool) -> list[Problem]:
    if details["type"] == "missing" and place.owner is not None:
        missing = [locate(root, details["loc"] + rest) for rest in required_keys(place.annotation)]
        return [Problem(path=lack.path, text=_missing(lack, in_file), is_rule=False) for lack in missing]
    return [Problem(path=place.path, text=_sentence(place, details, root), is_rule=details["type"] == "value_error")]


def _sentence(place: Place, details: ErrorDetails, root: type) -> str:
    kind, value, key = details["type"], details["input"], ".".join(place.path)
    if kind == "unexpected_keyword_argument":
        return f"unknown key '{key}'; {suggest(root, place)}"
    if kind == "value_error":
        return _rule_of_the_section(place, str(details["ctx"]["error"]))
    if kind == "missing":  # a list of fixed length that ends too early: speak of the list
        place = locate(root, details["loc"][:-1])
        key = ".".join(place.path)
    if place.annotation is None:
        return f"{key} is {_show(value)}: {details['msg']}."
    subject = key or "the file"
    words = [f"{subject} is {_show(value)}, and must be {describe(place.annotation)}."]
    words += [text for text in (_remedy(value, place.annotation), _description(place)) if text]
    return " ".join(words)


def _rule_of_the_section(place: Place, message: str) -> str:
    """Sections know their own field names only: put the section in front."""
    first_word = (re.match(r"\w+", message) or [""])[0]
    section = ".".join(place.path)
    if not section or first_word == place.path[-1]:
        return message
    names = [field.name for field in fields(place.annotation)] if is_dataclass(place.annotation) else []
    return f"{section}.{message}" if first_word in names else f"{section}: {message}"


def _missing(place: Place, in_file: bool) -> str:
    key = ".".join(place.path)
    remedy = "Add it to the file, or give" if in_file else "Give"
    words = [f"{key} is missing. {remedy} {key}=VALUE on the command line."]
    return " ".join([*words, *filter(None, [_description(place)])])


def _remedy(value: Any, annotation: Any) -> str | None:
    allowed = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    if isinstance(value, float) and int in allowed and value.is_integer():
        return f"Write {int(value)}."
    if not isinstance(value, str):
        return None
    if bool in allowed and value.lower() in _YAML_1_1_BOOLEANS:
        return f"Write {_YAML_1_1_BOOLEANS[value.lower()]}."
    numeric = (int in allowed and re.fullmatch(r"[-+]?\d+", value)) or (float in allowed and _is_number(value))
    return "Remove the quotes." if numeric else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _description(place: Place) -> str | None:
    """The sentence that documents the field, in brackets."""
    if place.owner is None or not place.path:
        return None
    schema = TypeAdapter(place.owner).json_schema()
    text = schema["properties"].get(place.path[-1], {}).get("description")
    return f"({text})" if text else None


def _show(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE_CHARACTERS else text[: _LONGEST_VALUE_CHARACTERS - 1] + "…"
