"""Labels of documents: read, counted, and turned into the numbers that shards hold."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from data_pipeline.errors import CorpusError
from data_pipeline.label_config import LabelKind, LabelsConfig

Label = str | float | tuple[str, ...] | tuple[str | None, ...]
"""A class, a number, classes, or the class of each word, None where it has none."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
LARGEST_NUMBER = 3.4e38
"""Models learn numbers in fp32."""
NO_LABEL = -1
"""Stands at tokens that have no label of their own."""


@dataclass(frozen=True)
class LabelReader:
    """Makes labels of what stands in a corpus, or says what is wrong with it."""

    config: LabelsConfig
    source: str
    """Name of the source, for messages."""

    def read(self, value: Any, where: str) -> Label:
        """The label of a document.

        Args:
            value: As it stands there: a JSON value, or text.
            where: File and line.

        Raises:
            CorpusError: It is no label of that kind.
        """
        kind = self.config.kind
        if kind == "number":
            return self._number(value, where)
        if kind == "class":
            return self._class(value, where)
        if not isinstance(value, list | tuple):
            raise self._wrong(value, where, "a list of classes")
        if kind == "classes":
            return tuple(dict.fromkeys(self._name(item, where) for item in value))
        return tuple(None if item is None else self._name(item, where) for item in value)

    def _class(self, value: Any, where: str) -> str:
        cuts, names = self.config.boundaries, self.config.names
        if not cuts:
            return self._name(value, where)
        assert names is not None
        return names[bisect_right(cuts, self._number(value, where, " for labels.boundaries to cut"))]

    def _number(self, value: Any, where: str, why: str = "") -> float:
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not abs(found) <= LARGEST_NUMBER:
            raise self._wrong(value, where, "a finite number, in fp32 too")
        return found

    def _name(self, value: Any, where: str) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int) or value == "":
            raise self._wrong(value, where, "a class: a word or a whole number")
        name = str(value)
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise self._wrong(value, where, "a class whose name is UTF-8")
        names = self.config.names
        if names is not None and name not in names:
            raise CorpusError(
                f"Source {self.source!r}: {where} has the label {name!r} under {self.config.field!r}, and labels.names "
                f"are {', '.join(map(repr, names))}. Add it there, or mend the line."
            )
        return name

    def _wrong(self, value: Any, where: str, wanted: str) -> CorpusError:
        return CorpusError(
            f"Source {self.source!r}: {where} has {value!r} under {self.config.field!r}, and labels.kind is "
            f"{self.config.kind}: it must be {wanted}. Mend or remove the line, or change labels."
        )


class LabelCounts:
    """How often each class was seen."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, label: Label) -> None:
        """Counts a document's label, or labels."""
        if isinstance(label, str):
            self._counts[label] += 1
        elif isinstance(label, tuple):
            self._counts.update(name for name in label if name is not None)

    def of(self, names: Sequence[str]) -> tuple[int, ...]:
        """The counts of classes, in their order."""
        return tuple(self._counts[name] for name in names)

    def names(self, config: LabelsConfig) -> tuple[str, ...]:
        """The classes in the order of the model's outputs; none for numbers.

        Raises:
            CorpusError: There are too few for anything to be told apart.
        """
        if config.kind == "number":
            return ()
        seen = [name for name, count in self._counts.items() if count]
        least = 1 if config.kind == "classes" else 2
        if len(seen) < least:
            raise CorpusError(
                f"labels.field {config.field!r} holds {len(seen)} class{'' if len(seen) == 1 else 'es'} "
                f"({', '.join(seen) or 'none'}), and kind {config.kind} tells at least {least} apart. Check the field "
                "and the sources."
            )
        return config.names if config.names is not None else tuple(sorted(seen, key=_natural))


def _natural(name: str) -> tuple[int, int, str]:
    """Whole numbers by their value, before words."""
    return (0, int(name), name) if _WHOLE.fullmatch(name) else (1, 0, name)


class LabelMap:
    """From classes to the numbers of the model's outputs."""

    def __init__(self, kind: LabelKind, names: Sequence[str]) -> None:
        self.kind = kind
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, label: Label) -> float | int | list[int]:
        """What stands in the column `label`, or at the words of a document."""
        if isinstance(label, tuple):
            return [NO_LABEL if name is None else self._numbers[name] for name in label]
        return self._numbers[label] if isinstance(label, str) else label


def label_field(kind: str) -> pa.Field:
    """The Arrow column that holds labels of a kind: `label`, or `token_labels`, one for each token."""
    if kind == "token_class":
        return pa.field("token_labels", pa.large_list(pa.field("item", pa.int32(), nullable=False)))
    types = {"class": pa.int32(), "number": pa.float64(), "classes": pa.list_(pa.int32())}
    return pa.field("label", types[kind])


class LabelsHash:
    """Running xxh3_128 of labels, as numbers, in the order of documents."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, number: Any) -> None:
        """Adds a document's label: a number, or a list."""
        self._state.update(f"{number!r}\n".encode())

    def hexdigest(self) -> str:
        """Returns the hash so far."""
        return self._state.hexdigest()


def labels_hash(column: Any, kind: str) -> str:
    """The hash of labels as `TokenStream.labels` gives them; of words those that have one, in order."""
    found = LabelsHash()
    for label in column:
        found.add([int(item) for item in label] if kind in ("classes", "token_class") else label.item())
    return found.hexdigest()
