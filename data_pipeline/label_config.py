"""What a user may say about the labels of a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_pipeline.config_rules import STRICT

LabelKind = Literal["class", "classes", "number", "token_class"]


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """What each document is labelled with, and where that stands."""

    __pydantic_config__ = STRICT

    kind: LabelKind
    """`class`: one of several; `classes`: any number of several, as a list; `number`; `token_class`: one for each word,
    where text_field is a list of words and field a list of as many tags, or in CoNLL-U."""
    field: str = "label"
    """Key or column of the label; in CoNLL-U the column, such as `upos`."""
    names: tuple[str, ...] | None = None
    """The classes, in the order of the model's outputs; null takes those that are found, sorted."""
    boundaries: tuple[float, ...] = ()
    """class: cuts numbers into one class more than there are boundaries; a number on a boundary belongs above it."""

    def __post_init__(self) -> None:
        if self.kind == "number" and self.names is not None:
            raise ValueError(f"names are {list(self.names)} and kind is number, which has none. Leave names out.")
        if self.names is not None:
            if len(set(self.names)) != len(self.names):
                raise ValueError(f"names are {list(self.names)}: one stands there twice. Give each class once.")
            least = 1 if self.kind == "classes" else 2
            if len(self.names) < least:
                raise ValueError(
                    f"names are {list(self.names)}, and kind {self.kind} takes at least {least}. Add some."
                )
        if not self.boundaries:
            return
        if self.kind != "class":
            raise ValueError(
                f"boundaries are set and kind is {self.kind}: they cut numbers into a class. Leave them out."
            )
        cuts = list(self.boundaries)
        if cuts != sorted(set(cuts)) or not all(math.isfinite(cut) for cut in cuts):
            raise ValueError(f"boundaries are {cuts}: they are finite and grow. Put them in order.")
        if self.names is None or len(self.names) != len(cuts) + 1:
            raise ValueError(
                f"boundaries are {cuts}, which make {len(cuts) + 1} classes, and names are "
                f"{None if self.names is None else list(self.names)}. Name each class, from the lowest up."
            )
