"""What the configuration dataclasses take, read off their annotations: for error messages and suggestions."""

from __future__ import annotations

import difflib
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_SCALARS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}
_SUGGESTIONS_AT_MOST = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a configuration a location reported by pydantic points."""

    path: tuple[str, ...]
    """Keys from the top, as a person writes them: without the names that pydantic gives to union branches."""
    annotation: Any
    """Type that is expected there; None where the key is unknown."""
    owner: type | None
    """Section (dataclass) that the last key belongs to; None at the top and inside lists."""
    branch: bool
    """True where only one branch of a union was refused, and another may have got further."""


def locate(root: type, location: tuple[str | int, ...]) -> Place:
    """Follow a location reported by pydantic down the annotations of `root`."""
    path: list[str] = []
    annotation: Any = root
    owner: type | None = None
    branch = False
    for part in location:
        branches = _branches(annotation)
        if len(branches) > 1:
            chosen = [member for member in branches if _branch_name(member) == str(part).split("[")[0]]
            branch_of, annotation, branch = annotation, chosen[0] if chosen else None, True
            continue
        branch = False
        section = branches[0] if branches else None
        if is_dataclass(section):
            owner = section if isinstance(section, type) else None
            annotation = get_type_hints(section).get(str(part))
        else:
            owner, annotation = None, _item_type(section, part)
        path.append(str(part))
    return Place(path=tuple(path), annotation=branch_of if branch else annotation, owner=owner, branch=branch)


def describe(annotation: Any) -> str:
    """Say in words what values an annotation allows, to follow "must be"."""
    if get_origin(annotation) is Literal:
        names = [value if isinstance(value, str) else str(value) for value in get_args(annotation)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe(member) for member in get_args(annotation))
    if get_origin(annotation) is tuple:
        members = get_args(annotation)
        item = describe(members[0])
        plural = _PLURALS.get(item, item.removeprefix("a section ").replace("{", "entries {", 1))
        return f"a list of {plural}" if Ellipsis in members else f"a list of {len(members)} {plural}"
    if is_dataclass(annotation):
        return f"a section {{{', '.join(field.name for field in fields(annotation))}}}"
    raise TypeError(f"no words for the type {annotation!r}: add them here.")


def required_keys(annotation: Any) -> list[tuple[str, ...]]:
    """Keys below a section that have no default; one empty path where the annotation is no section."""
    if not is_dataclass(annotation):
        return [()]
    hints = get_type_hints(annotation)
    return [
        (field.name, *rest)
        for field in fields(annotation)
        if field.default is MISSING and field.default_factory is MISSING
        for rest in required_keys(hints[field.name])
    ]


def suggest(root: type, place: Place) -> str:
    """Name what a person may have meant by an unknown key, or else the keys that exist there."""
    key, parents = place.path[-1], place.path[:-1]
    elsewhere = _all_keys(root)
    siblings = [field.name for field in fields(place.owner)] if place.owner is not None else []
    found = [path for path in elsewhere if path[-1] == key]
    if not found:
        found = [(*parents, name) for name in difflib.get_close_matches(key, siblings, n=1)]
    if not found:
        close = difflib.get_close_matches(key, {path[-1] for path in elsewhere}, n=1, cutoff=0.75)
        found = [path for path in elsewhere if path[-1] in close]
    if not found:
        return f"the keys {'there' if parents else 'at the top'} are {', '.join(siblings)}"
    names = [f"'{'.'.join(path)}'" for path in found[:_SUGGESTIONS_AT_MOST]]
    return f"did you mean {' or '.join(names)}?"


def _all_keys(section: Any) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for name, annotation in get_type_hints(section).items():
        paths.append((name,))
        for member in _branches(annotation):
            index: tuple[str, ...] = ()
            if get_origin(member) is tuple:
                index, member = ("0",), get_args(member)[0]
            if is_dataclass(member):
                paths += [(name, *index, *rest) for rest in _all_keys(member)]
    return paths


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not types.NoneType]
    return [annotation]


def _branch_name(member: Any) -> str:
    if get_origin(member) is Literal:
        return "literal"
    return str(getattr(get_origin(member) or member, "__name__", ""))


def _item_type(annotation: Any, index: str | int) -> Any:
    members = get_args(annotation)
    if get_origin(annotation) is not tuple or not isinstance(index, int):
        return None
    return members[0] if Ellipsis in members else members[min(index, len(members) - 1)]
