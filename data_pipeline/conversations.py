"""Conversations out of JSON lines: lists of messages, or pairs of a prompt and an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipeline.chat_template import ROLES, Role
from data_pipeline.config import SourceConfig
from data_pipeline.errors import CorpusError
from data_pipeline.json_lines import as_read, field, quoted, text_field, type_in_words


@dataclass(frozen=True)
class RawTurn:
    """A turn as it was read; bytes, because they may not be UTF-8."""

    role: Role
    data: bytes


def read_turns(source: SourceConfig, value: dict[str, Any], where: str) -> tuple[RawTurn, ...]:
    """Takes the conversation out of a parsed line.

    Args:
        source: Whose fields say where it lies; it holds conversations.
        value: The line's object.
        where: File and line, for messages.

    Raises:
        CorpusError: A key is missing, or what lies under it is no conversation.
    """
    if source.messages_field is None:
        prompt = text_field(source, value, "prompt_field", where)
        before = b"" if source.instruction is None else source.instruction.encode() + b"\n"
        return (
            RawTurn("user", before + prompt),
            RawTurn("assistant", text_field(source, value, "answer_field", where)),
        )
    messages = field(source, value, "messages_field", where)
    if not isinstance(messages, list):
        raise CorpusError(
            f"Source {source.name!r}: {where} has {type_in_words(messages)} under {source.messages_field!r}, not a "
            f"list of messages: {quoted(value)}. Set messages_field to the key of a list of {{role, content}}."
        )
    if not messages:
        raise CorpusError(
            f"Source {source.name!r}: {where} has an empty list under {source.messages_field!r}: {quoted(value)}. A "
            "conversation has a message at least. Remove the line."
        )
    return tuple(
        _turn(source, message, value, f"{where}, message {number}") for number, message in enumerate(messages, start=1)
    )


def _turn(source: SourceConfig, message: Any, value: dict[str, Any], where: str) -> RawTurn:
    if not isinstance(message, dict):
        raise CorpusError(
            f"Source {source.name!r}: {where} is {type_in_words(message)}, not an object: {quoted(value)}. Write each "
            "message as {role, content}."
        )
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            state = f"has {type_in_words(message[key])} as its {key}" if key in message else f"has no {key}"
            raise CorpusError(
                f"Source {source.name!r}: {where} {state}: {quoted(value)}. A message has a `role` and a `content`, "
                "both strings. Mend or remove the line."
            )
    role = message["role"]
    if role not in ROLES:
        raise CorpusError(
            f"Source {source.name!r}: {where} has the role {role!r}: {quoted(value)}. Roles are {', '.join(ROLES)}. "
            "Rename it in the file."
        )
    return RawTurn(role, as_read(message["content"]))
