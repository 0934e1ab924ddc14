"""Files of prompts: lines as they stand, JSON lines, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.chat_template import Turn
from launcher.errors import UsageError
from launcher.prompt_file import TextPrompt, read_prompts


def test_prompts_are_the_lines_when_the_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b'Emma \n\n  Mr. Knightley\r\n{"prompt": "x"}')
    assert [prompt.text for prompt in read_prompts(path)] == ["Emma ", "  Mr. Knightley", '{"prompt": "x"}']


def test_prompts_are_those_of_the_objects_when_the_file_is_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "two\\nlines", "seed": 7}\n\n{"prompt": ""}\n')
    assert read_prompts(path) == [TextPrompt(text="two\nlines", seed=7), TextPrompt(text="")]


def test_last_of_messages_is_the_prompt_and_the_others_come_before(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    path.write_text(json.dumps({"messages": messages, "seed": 3}))
    earlier = (Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a"))
    assert read_prompts(path) == [TextPrompt(text="u", seed=3, chat=True, earlier=earlier)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "--prompts {path}: the file has no prompt. Write one a line."),
        ("p.txt", b"ab\xff", "--prompts {path}: not UTF-8 text (byte 2). Convert it first."),
        ("p.txt", None, "--prompts {path}: cannot be read: No such file or directory. Check the path."),
        (
            "p.jsonl",
            b'{"prompt": "a"}\nEmma\n',
            "--prompts {path}, line 2 is not JSON (Expecting value: line 1 column 1 (char 0)), and every line of a "
            ".jsonl file is one object. Mend the line, or give the file another ending if its lines are prompts as "
            "they stand.",
        ),
        (
            "p.jsonl",
            b'{"text": "a"}\n',
            '--prompts {path}, line 1 has no `prompt` that is a text. Write it as {{"prompt": "Once upon a time"}}.',
        ),
        (
            "p.jsonl",
            b'["a"]\n',
            '--prompts {path}, line 1 has no `prompt` that is a text. Write it as {{"prompt": "Once upon a time"}}.',
        ),
        (
            "p.jsonl",
            b'{"prompt": "a", "temperature": 1}\n',
            "--prompts {path}, line 1 has the key 'temperature', which would be ignored. Remove it: a prompt "
            "has prompt, messages and seed.",
        ),
        (
            "p.jsonl",
            b'{"prompt": "a", "seed": 1.5}\n',
            "--prompts {path}, line 1: seed is 1.5, and must be a whole number. Change it, or leave it out.",
        ),
        (
            "p.jsonl",
            b'{"prompt": "a", "messages": []}\n',
            "--prompts {path}, line 1 has a `prompt` and `messages`. Leave one of them out.",
        ),
        (
            "p.jsonl",
            b'{"messages": [{"role": "bot", "content": "a"}]}\n',
            "--prompts {path}, line 1: messages are no list of {{role, content}} with the roles system, user, "
            'assistant. Write them as {{"messages": [{{"role": "user", "content": "Who are you?"}}]}}.',
        ),
        (
            "p.jsonl",
            b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
            "--prompts {path}, line 1: the last of the messages is not the user's, and that is answered. Add one.",
        ),
    ],
)
def test_file_is_refused_when_it_is_not_what_it_should_be(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_prompts(path)
    assert str(error.value) == message.format(path=path)
