"""From raw bytes to normalised text, or to a reason why the document is dropped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.chat_template import Turn
from data_pipeline.config import CleaningConfig
from data_pipeline.conversations import RawTurn
from data_pipeline.errors import CorpusError
from data_pipeline.raw_document import RawDocument, Word, joined

DROP_REASONS = ("empty", "too_short", "invalid_utf8")
CONVERSATION_DROP_REASONS = (*DROP_REASONS, "unanswered", "empty_answer")
"""Of conversations: also those that nobody answers at their end, and those with an answer that says nothing."""

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_LINE_BREAK = re.compile(r"[^\S\n]*\n[^\S\n]*")


@dataclass(frozen=True)
class Cleaned:
    """What became of a document: its text, or the reason for dropping it."""

    text: str | None
    """Of a conversation, what its turns say one after the other."""
    reason: str | None
    turns: tuple[Turn, ...] | None = None
    """Of a conversation that is kept."""
    words: tuple[Word, ...] | None = None
    """Of a document whose words have labels: normalised one by one."""


def clean(document: RawDocument, config: CleaningConfig) -> Cleaned:
    """Decodes and normalises a document.

    Args:
        document: As read.
        config: What to normalise and drop.

    Returns:
        Its text, or one of DROP_REASONS, of a conversation of CONVERSATION_DROP_REASONS.

    Raises:
        CorpusError: The bytes are not UTF-8 and `invalid_utf8` is `error`.
    """
    if document.turns is not None:
        return _clean_turns(document, document.turns, config)
    text = _decoded(document, document.data, config)
    if text is None:
        return Cleaned(None, "invalid_utf8")
    words = document.words
    if words is not None:
        words = tuple(Word(normalise(word.text, config), word.space_after) for word in words)
    text = normalise(text, config) if words is None else joined(words)
    reason = _too_little(text.strip(), config)
    return Cleaned(text if reason is None else None, reason, words=words)


def _clean_turns(document: RawDocument, raw: Sequence[RawTurn], config: CleaningConfig) -> Cleaned:
    """Cleans each turn by itself, white space at its ends removed: the template says what stands between turns."""
    turns = []
    for turn in raw:
        content = _decoded(document, turn.data, config)
        if content is None:
            return Cleaned(None, "invalid_utf8")
        turns.append(Turn(turn.role, normalise(content, config).strip()))
    whole = "".join(turn.content for turn in turns)
    reason = _too_little(whole, config)
    if reason is None and turns[-1].role != "assistant":
        reason = "unanswered"
    if reason is None and not all(turn.content for turn in turns if turn.role == "assistant"):
        reason = "empty_answer"
    return Cleaned(None, reason) if reason is not None else Cleaned(whole, None, tuple(turns))


def _too_little(stripped: str, config: CleaningConfig) -> str | None:
    if not stripped:
        return "empty"
    return "too_short" if len(stripped) < config.min_characters else None


def _decoded(document: RawDocument, data: bytes, config: CleaningConfig) -> str | None:
    """Decodes a document or one of its turns; None where it is to be dropped."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if config.invalid_utf8 == "drop":
            return None
        place = document.offset + error.start
        raise CorpusError(
            f"Source {document.source!r}: {document.where} is not UTF-8 at byte {place} "
            f"(0x{data[error.start]:02x}, {error.reason}). Convert it to UTF-8, or set "
            "cleaning.invalid_utf8 to `drop` to leave such documents out."
        ) from error


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
