"""A document as a corpus holds it, before it is cleaned."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.conversations import RawTurn
from data_pipeline.labels import Label


@dataclass(frozen=True)
class Word:
    """A word that has a label of its own."""

    text: str
    space_after: bool = True


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read; bytes, because they may not be UTF-8."""

    document_id: str
    """Name within the source."""
    source: str
    data: bytes
    where: str
    """File (and line), for messages."""
    offset: int = 0
    """Byte in the file at which `data` begins; 0 for lines and rows."""
    turns: tuple[RawTurn, ...] | None = None
    """Of a conversation, whose contents one after the other are `data`; None for text."""
    label: Label | None = None
    """What it is labelled with, where labels were asked for."""
    words: tuple[Word, ...] | None = None
    """Where each word has a label: the words of `data`."""


def joined(words: tuple[Word, ...]) -> str:
    """The text of words."""
    return "".join(word.text + " " * word.space_after for word in words).rstrip(" ")
