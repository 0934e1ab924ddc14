"""Conversations out of JSON lines: messages and pairs, and what is said of a line that holds neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cleaning import clean
from data_pipeline.config import CleaningConfig, SourceConfig
from data_pipeline.conversations import RawTurn
from data_pipeline.errors import CorpusError
from data_pipeline.raw_document import RawDocument
from data_pipeline.readers import read_documents

MESSAGES = {"messages_field": "messages"}
PAIRS = {"prompt_field": "en", "answer_field": "zh"}


def read(tmp_path: Path, line: Any, **options: Any) -> RawDocument:
    """The document of a file with this line."""
    path = tmp_path / "chats.jsonl"
    path.write_bytes(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    (document,) = read_documents(SourceConfig(name="chats", path=str(path), **options))
    return document


def messages(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_messages_become_turns_in_their_order(tmp_path: Path) -> None:
    document = read(tmp_path, messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")), **MESSAGES)
    assert document.turns == (
        RawTurn("system", b"Be kind."),
        RawTurn("user", b"Hi"),
        RawTurn("assistant", b"Hello"),
    )
    assert document.data == b"Be kind.HiHello"
    assert document.document_id == "chats.jsonl:1"


def test_pair_becomes_a_question_and_its_answer(tmp_path: Path) -> None:
    document = read(tmp_path, {"en": "Yes", "zh": "\u662f"}, **PAIRS)
    assert document.turns == (RawTurn("user", b"Yes"), RawTurn("assistant", "\u662f".encode()))


def test_instruction_goes_before_the_question_of_a_pair(tmp_path: Path) -> None:
    document = read(tmp_path, {"en": "Yes", "zh": "\u662f"}, instruction="Translate into Chinese.", **PAIRS)
    assert document.turns is not None
    assert document.turns[0].data == b"Translate into Chinese.\nYes"


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        (
            {"text": "x"},
            MESSAGES,
            "{where} has no key 'messages'; it has 'text'. Set messages_field to one of them.",
        ),
        (
            {"messages": "Hi"},
            MESSAGES,
            "{where} has a string under 'messages', not a list of messages: {line}. Set messages_field to the key of a "
            "list of {{role, content}}.",
        ),
        (
            {"messages": []},
            MESSAGES,
            "{where} has an empty list under 'messages': {line}. A conversation has a message at least. Remove the "
            "line.",
        ),
        (
            {"messages": ["Hi"]},
            MESSAGES,
            "{where}, message 1 is a string, not an object: {line}. Write each message as {{role, content}}.",
        ),
        (
            {"messages": [{"role": "user"}]},
            MESSAGES,
            "{where}, message 1 has no content: {line}. A message has a `role` and a `content`, both strings. Mend or "
            "remove the line.",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            MESSAGES,
            "{where}, message 1 has null as its content: {line}. A message has a `role` and a `content`, both strings. "
            "Mend or remove the line.",
        ),
        (
            {"messages": [{"role": "gpt", "content": "Hi"}]},
            MESSAGES,
            "{where}, message 1 has the role 'gpt': {line}. Roles are system, user, assistant. Rename it in the file.",
        ),
        (
            {"en": "Yes", "zh": 3},
            PAIRS,
            "{where} has a whole number under 'zh', not a string: {line}. Set answer_field to the key of the answer.",
        ),
        (
            [1],
            MESSAGES,
            "{where} holds a list, not an object: {line}. Each line must be an object with a conversation under a key.",
        ),
    ],
)
def test_line_is_refused_when_it_holds_no_conversation(
    line: Any, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError) as caught:
        read(tmp_path, line, **options)
    where, quoted = f"{tmp_path / 'chats.jsonl'}, line 1", repr(json.dumps(line))
    assert str(caught.value) == "Source 'chats': " + message.format(where=where, line=quoted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_field": "en"}, "prompt_field is 'en' and answer_field None: a pair has both"),
        ({**MESSAGES, **PAIRS}, "messages_field is 'messages' and prompt_field 'en': a line holds messages or a pair"),
        ({**MESSAGES, "instruction": "Go."}, "instruction is 'Go.', and goes before the prompt of pairs"),
        ({**MESSAGES, "format": "text"}, "conversations are read from JSON lines"),
        ({**PAIRS, "document_separator": "^#"}, "conversations are read from JSON lines"),
        ({**PAIRS, "text_field": "en"}, "conversations are read from JSON lines"),
    ],
)
def test_source_is_refused_when_its_fields_contradict_each_other(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(name="chats", path="x", **options)  # type: ignore[arg-type]


def test_conversations_are_read_as_json_lines_whatever_the_ending(tmp_path: Path) -> None:
    (tmp_path / "chats.data").write_text(json.dumps(messages(("user", "Hi"))) + "\n")
    source = SourceConfig(name="chats", path=str(tmp_path / "chats.data"), messages_field="messages")
    assert [document.turns for document in read_documents(source)] == [(RawTurn("user", b"Hi"),)]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((("user", "Hi"), ("assistant", " Hello \n")), None),
        ((("assistant", "Hello"),), None),
        ((("user", ""), ("assistant", "Hello")), None),
        ((("user", "Hi you"),), "unanswered"),
        ((("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")), "unanswered"),
        ((("user", "Hi you"), ("assistant", " \n")), "empty_answer"),
        ((("user", "Hi"), ("assistant", ""), ("user", "Hm"), ("assistant", "Hello")), "empty_answer"),
        ((("user", " "), ("assistant", "")), "empty"),
        ((("user", "a"), ("assistant", "b")), "too_short"),
    ],
)
def test_conversation_is_dropped_with_its_reason_when_it_teaches_nothing(
    turns: tuple[tuple[str, str], ...], reason: str | None, tmp_path: Path
) -> None:
    cleaned = clean(read(tmp_path, messages(*turns), **MESSAGES), CleaningConfig(min_characters=3))
    assert cleaned.reason == reason
    assert (cleaned.turns is None) == (reason is not None)


def test_turns_are_normalised_one_by_one(tmp_path: Path) -> None:
    line = messages(("user", " e\u0301t\u00e9\r\nlong "), ("assistant", "\nyes\n"))
    cleaned = clean(read(tmp_path, line, **MESSAGES), CleaningConfig())
    assert cleaned.turns is not None
    assert [turn.content for turn in cleaned.turns] == ["\u00e9t\u00e9\nlong", "yes"]
    assert cleaned.text == "\u00e9t\u00e9\nlongyes"


def test_bytes_that_are_not_utf8_are_an_error_or_a_reason_to_drop(tmp_path: Path) -> None:
    line = b'{"en": "bad \xff byte", "zh": "x"}\n'
    document = read(tmp_path, line, **PAIRS)
    assert clean(document, CleaningConfig(invalid_utf8="drop")).reason == "invalid_utf8"
    with pytest.raises(CorpusError, match=r"line 1 is not UTF-8 at byte 4 \(0xff, invalid start byte\)"):
        clean(document, CleaningConfig())
