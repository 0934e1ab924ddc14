"""From raw bytes to normalised text, or to a reason why the document is dropped."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from data_pipeline.config import CleaningConfig
from data_pipeline.errors import CorpusError
from data_pipeline.readers import RawDocument, Word, joined

DROP_REASONS = ("empty", "too_short", "invalid_utf8")

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_LINE_BREAK = re.compile(r"[^\S\n]*\n[^\S\n]*")


@dataclass(frozen=True)
class Cleaned:
    """What became of a document: its text, or the reason for dropping it."""

    text: str | None
    reason: str | None
    words: tuple[Word, ...] | None = None
    """Of a document whose words have labels: normalised one by one."""


def clean(document: RawDocument, config: CleaningConfig) -> Cleaned:
    """Decodes and normalises a document.

    Args:
        document: As read.
        config: What to normalise and drop.

    Returns:
        Its text, or one of DROP_REASONS.

    Raises:
        CorpusError: The bytes are not UTF-8 and `invalid_utf8` is `error`.
    """
    try:
        text = document.data.decode()
    except UnicodeDecodeError as error:
        if config.invalid_utf8 == "drop":
            return Cleaned(None, "invalid_utf8")
        place = document.offset + error.start
        raise CorpusError(
            f"Source {document.source!r}: {document.where} is not UTF-8 at byte {place} "
            f"(0x{document.data[error.start]:02x}, {error.reason}). Convert it to UTF-8, or set "
            "cleaning.invalid_utf8 to `drop` to leave such documents out."
        ) from error
    words = document.words
    if words is not None:
        words = tuple(Word(normalise(word.text, config), word.space_after) for word in words)
    text = normalise(text, config) if words is None else joined(words)
    stripped = text.strip()
    if not stripped:
        return Cleaned(None, "empty")
    if len(stripped) < config.min_characters:
        return Cleaned(None, "too_short")
    return Cleaned(text, None, words)


def normalise(text: str, config: CleaningConfig) -> str:
    """Removes a byte-order mark and carriage returns, composes characters, joins wrapped lines."""
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.unicode_normalization == "nfc" and not (text.isascii() or unicodedata.is_normalized("NFC", text)):
        text = unicodedata.normalize("NFC", text)
    return unwrap(text) if config.unwrap_lines else text


def unwrap(text: str) -> str:
    """Joins the lines of each paragraph (blank lines part them), so that a paragraph is one line."""
    paragraphs = (_LINE_BREAK.sub(" ", part.strip()) for part in _PARAGRAPH_BREAK.split(text))
    return "\n".join(part for part in paragraphs if part)
