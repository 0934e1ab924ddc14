"""Tagged sentences in CoNLL-U (https://universaldependencies.org/format.html)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import CorpusError

COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_UNSPECIFIED = "_"


@dataclass(frozen=True)
class Sentence:
    """The syntactic words of a sentence, with one column of what is said about them."""

    name: str | None
    """Its `sent_id`."""
    line: int
    """On which it ends."""
    words: tuple[str, ...]
    spaces: tuple[bool, ...]
    """Whether a space follows each word in the text."""
    tags: tuple[str | None, ...]
    """None where the column is unspecified."""


def sentences(stream: BinaryIO, column: str, source: str, file: Path) -> Iterator[Sentence]:
    """Sentences in their order; ranges of multi-word tokens and empty nodes are passed over.

    Args:
        stream: The file's bytes.
        column: What to read as tags.
        source: Name of the source, for messages.
        file: Likewise.

    Raises:
        CorpusError: There is no such column, or a line is not one of ten.
    """
    if column not in COLUMNS[2:]:
        raise CorpusError(
            f"Source {source!r}: labels.field is {column!r}, and a word in CoNLL-U has {', '.join(COLUMNS[2:])}. "
            "Choose one of them."
        )
    place = COLUMNS.index(column)
    name: str | None = None
    rows: list[list[str]] = []
    number = 0
    for number, line in enumerate(stream, start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape").rstrip("\r\n")
        if text.startswith("#"):
            key, _, value = text[1:].partition("=")
            name = value.strip() if key.strip() == "sent_id" else name
        elif text:
            cells = text.split("\t")
            if len(cells) != len(COLUMNS):
                raise CorpusError(
                    f"Source {source!r}: {file}, line {number} has {len(cells)} columns, and CoNLL-U {len(COLUMNS)}, "
                    "with tabs between. Mend the line."
                )
            if cells[0].isdecimal():
                rows.append(cells)
        elif rows:
            yield _sentence(name, number, rows, place)
            name, rows = None, []
    if rows:
        yield _sentence(name, number, rows, place)


def _sentence(name: str | None, line: int, rows: list[list[str]], place: int) -> Sentence:
    return Sentence(
        name=name,
        line=line,
        words=tuple(row[1] for row in rows),
        spaces=tuple("SpaceAfter=No" not in row[-1].split("|") for row in rows),
        tags=tuple(None if row[place] == _UNSPECIFIED else row[place] for row in rows),
    )
