"""Entities in tags, strictly: what does not follow the scheme is no entity.

The definitions are those of seqeval 1.2.2 with `mode="strict"`, schemes IOB2 and IOBES. Its last release is of 2020 and
installs from source only; forty lines are less than that dependency.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Entity = tuple[str, int, int]
"""Type, first token, token after the last."""
Scheme = Literal["IOB2", "IOBES"]

_OUTSIDE = "O"
_TAG = re.compile(r"([BIES])-(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class EntityTags:
    """What the names of tags say about entities."""

    scheme: Scheme
    """`IOB2`: an entity is B-type and then I-type; `IOBES`: S-type alone, or B-type, I-type..., E-type."""
    parts: tuple[tuple[str, str], ...]
    """Prefix and type of each tag; `O` and nothing outside of entities."""

    @property
    def types(self) -> tuple[str, ...]:
        """Types of entities, sorted."""
        return tuple(sorted({kind for _, kind in self.parts if kind}))

    def entities(self, tags: Sequence[int]) -> set[Entity]:
        """The entities in the tags of one sentence, given by their indices."""
        return (
            _iob2([self.parts[tag] for tag in tags])
            if self.scheme == "IOB2"
            else _iobes([self.parts[tag] for tag in tags])
        )


def entity_tags(names: Sequence[str]) -> EntityTags | None:
    """Read the names; None where they are not those of entities, as of parts of speech."""
    parts = []
    for name in names:
        found = _TAG.fullmatch(name)
        if found is None and name != _OUTSIDE:
            return None
        parts.append((found[1], found[2]) if found else (_OUTSIDE, ""))
    prefixes = {prefix for prefix, _ in parts}
    if "B" not in prefixes:
        return None
    return EntityTags(scheme="IOBES" if prefixes & {"E", "S"} else "IOB2", parts=tuple(parts))


def _iob2(parts: Sequence[tuple[str, str]]) -> set[Entity]:
    found = set()
    place = 0
    while place < len(parts):
        prefix, kind = parts[place]
        begin, place = place, place + 1
        if prefix == "B":
            while place < len(parts) and parts[place] == ("I", kind):
                place += 1
            found.add((kind, begin, place))
    return found


def _iobes(parts: Sequence[tuple[str, str]]) -> set[Entity]:
    found = set()
    place = 0
    while place < len(parts):
        prefix, kind = parts[place]
        begin, place = place, place + 1
        if prefix == "S":
            found.add((kind, begin, place))
        elif prefix == "B":
            while place < len(parts) and parts[place] == ("I", kind):
                place += 1
            if place < len(parts) and parts[place] == ("E", kind):
                place += 1
                found.add((kind, begin, place))
    return found
