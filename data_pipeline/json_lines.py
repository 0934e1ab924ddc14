"""One line of a JSON-lines file: an object, its fields, and what is said of those that are not as they must be."""

from __future__ import annotations

import json
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError

_TYPES = {
    "dict": "an object",
    "list": "a list",
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "null",
}


def json_object(source: SourceConfig, line: bytes, where: str) -> dict[str, Any]:
    """Parses a line.

    Args:
        source: Whose file it is of.
        line: As read; bytes that are not UTF-8 survive as surrogates, so that cleaning finds them.
        where: File and line, for messages.

    Raises:
        CorpusError: It is not JSON, or not an object.
    """
    try:
        value = json.loads(line.decode(errors="surrogateescape").removeprefix("\ufeff"))
    except ValueError as error:
        raise CorpusError(
            f"Source {source.name!r}: {where} is not JSON ({error}): {excerpt(line)}. Mend or remove the line."
        ) from error
    if not isinstance(value, dict):
        holds = "a conversation" if source.holds_conversations else "the text"
        raise CorpusError(
            f"Source {source.name!r}: {where} holds {type_in_words(value)}, not an object: {excerpt(line)}. "
            f"Each line must be an object with {holds} under a key."
        )
    return value


def field(source: SourceConfig, value: dict[str, Any], option: str, where: str) -> Any:
    """Returns the value under the key that an option of the source names.

    Raises:
        CorpusError: There is no such key.
    """
    key = getattr(source, option)
    if key not in value:
        raise CorpusError(
            f"Source {source.name!r}: {where} has no key {key!r}; it has "
            f"{', '.join(map(repr, value)) or 'none'}. "
            f"Set {option} to one of them."
        )
    return value[key]


def text_field(source: SourceConfig, value: dict[str, Any], option: str, where: str) -> bytes:
    """Returns the text under the key that an option of the source names; bytes, because it may not be UTF-8.

    Raises:
        CorpusError: There is no such key, or no string under it.
    """
    text = field(source, value, option, where)
    if not isinstance(text, str):
        what = option.removesuffix("_field")
        raise CorpusError(
            f"Source {source.name!r}: {where} has {type_in_words(text)} under {getattr(source, option)!r}, not "
            f"a string: {quoted(value)}. Set {option} to the key of the {what}."
        )
    return as_read(text)


def as_read(text: str) -> bytes:
    """Returns a parsed string's bytes as they stood in the file."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate was written as \\ud800: not UTF-8 either, which cleaning decides on
        return text.encode(errors="surrogatepass")


def type_in_words(value: Any) -> str:
    """Names the JSON type of a value, or what else a column of Parquet may hold."""
    kind = type(value).__name__
    return _TYPES.get(kind, f"a value of type {kind}")


def quoted(value: dict[str, Any]) -> str:
    """Quotes the beginning of an object as a line spells it, for messages alone: it takes as long as parsing it."""
    return excerpt(json.dumps(value, ensure_ascii=False, default=str).encode(errors="surrogatepass"))


def excerpt(line: bytes) -> str:
    """Quotes the beginning of a line."""
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")
