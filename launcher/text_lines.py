"""Texts to predict for, out of a file or standard input, a line each, read as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from launcher.errors import UsageError
from launcher.line_file import require_text

STANDARD_INPUT = Path("-")
ANSWER = "prediction"
"""Key under which an answer is given back."""
_TABLES = (".csv", ".tsv", ".parquet", ".conllu", ".gz")


@dataclass(frozen=True, kw_only=True)
class TextLine:
    """What one line asks about."""

    text: str | list[str]
    """A text, or its words where these are what is labelled."""
    fields: dict[str, Any]
    """What the line holds, to be given back with the answer."""


def read_lines(path: Path, text_field: str, *, words: bool) -> Iterator[TextLine]:
    """Read a file line by line, or standard input where the path is `-`; blank lines of JSON files are passed over.

    Args:
        path: UTF-8. Lines that begin with `{` are JSON objects, where the file's name ends in .jsonl or it is standard
            input; others are texts as they stand.
        text_field: Key of the text in an object.
        words: Whether words are labelled: a text is then cut at white space, and an object may hold a list.

    Raises:
        UsageError: It cannot be read, or a line is not what it should be.
    """
    stdin = path == STANDARD_INPUT
    if path.name.lower().endswith(_TABLES):
        raise UsageError(
            f"{path}: texts are read from JSON lines (.jsonl) or a file with one a line. Convert it first."
        )
    may_be_json = stdin or path.name.endswith((".jsonl", ".ndjson"))
    try:
        stream: BinaryIO = sys.stdin.buffer if stdin else path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    with nullcontext(stream) if stdin else stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{'standard input' if stdin else path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UsageError(f"{where}: not UTF-8 text (byte {error.start}). Convert it first.") from error
            is_json = may_be_json and (not stdin or line.lstrip().startswith("{"))
            if not line.strip():
                if may_be_json and not stdin:
                    continue
                raise UsageError(f"{where}: there is no text to predict for. Remove the line.")
            if is_json:
                yield _from_json(line, text_field, words, where)
            else:
                yield TextLine(text=line.split() if words else line, fields={text_field: line})


def _from_json(line: str, text_field: str, words: bool, where: str) -> TextLine:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}). Mend or remove the line.") from error
    if not isinstance(fields, dict) or text_field not in fields:
        keys = ", ".join(map(repr, fields)) if isinstance(fields, dict) else "none"
        raise UsageError(
            f"{where}: no object with the key {text_field!r}; it has {keys or 'none'}. Set --text-field to one of them."
        )
    if ANSWER in fields:
        raise UsageError(f"{where}: the key {ANSWER!r} would be replaced by the answer. Rename or remove it.")
    text = fields[text_field]
    if words and isinstance(text, str):
        text = text.split()
    wanted = "a text or a list of words" if words else "a text"
    is_right = isinstance(text, list) and all(isinstance(word, str) and word.strip() for word in text)
    if not (is_right if words else isinstance(text, str) and text.strip()) or not text:
        raise UsageError(f"{where}: {text!r} under {text_field!r} must be {wanted}, and not empty. Mend the line.")
    require_text(json.dumps(fields, ensure_ascii=False), where)
    return TextLine(text=text, fields=fields)
