"""Prompts out of a file: a line of text each, or JSON lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.chat_template import ROLES, Turn
from launcher.errors import UsageError
from launcher.line_file import parse_json, read_lines, refuse_unknown_keys

_KEYS = ("prompt", "messages", "seed")


@dataclass(frozen=True, kw_only=True)
class TextPrompt:
    """Text that a model continues."""

    text: str
    seed: int | None = None
    """Of this prompt alone; None takes the seed of all."""
    chat: bool = False
    """Whether it is what a user says, which the model answers, instead of a text that it goes on with."""
    earlier: tuple[Turn, ...] = ()
    """What was said before it, in a chat."""


def read_prompts(path: Path) -> list[TextPrompt]:
    """Read the prompts of a file, in its order; blank lines are passed over.

    Args:
        path: UTF-8. Where its name ends in .jsonl each line is an object with a `prompt`, or the `messages` of a chat
            that the model is to answer, and, where wanted, a `seed`; elsewhere each line is a prompt as it stands.

    Raises:
        UsageError: It cannot be read, has no prompt, or a line is not what it should be.
    """
    lines = read_lines(path, f"--prompts {path}", "prompt")
    if path.suffix != ".jsonl":
        return [TextPrompt(text=line) for _, line in lines]
    return [_from_json(line, f"--prompts {path}, line {number}") for number, line in lines]


def _from_json(line: str, where: str) -> TextPrompt:
    fields = parse_json(line, where, ", or give the file another ending if its lines are prompts as they stand")
    if not isinstance(fields, dict) or not (isinstance(fields.get("prompt"), str) or "messages" in fields):
        raise UsageError(f'{where} has no `prompt` that is a text. Write it as {{"prompt": "Once upon a time"}}.')
    refuse_unknown_keys(fields, where, "a prompt", _KEYS)
    seed = fields.get("seed")
    if seed is not None and type(seed) is not int:
        raise UsageError(f"{where}: seed is {seed!r}, and must be a whole number. Change it, or leave it out.")
    if "messages" not in fields:
        return TextPrompt(text=fields["prompt"], seed=seed)
    if "prompt" in fields:
        raise UsageError(f"{where} has a `prompt` and `messages`. Leave one of them out.")
    *earlier, last = _turns(fields["messages"], where)
    return TextPrompt(text=last.content, seed=seed, chat=True, earlier=tuple(earlier))


def _turns(messages: Any, where: str) -> list[Turn]:
    """The turns of a chat, the last of which is the user's."""
    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and each.get("role") in ROLES and isinstance(each.get("content"), str)
        for each in messages
    ):
        raise UsageError(
            f"{where}: messages are no list of {{role, content}} with the roles {', '.join(ROLES)}. Write them as "
            '{"messages": [{"role": "user", "content": "Who are you?"}]}.'
        )
    if not messages or messages[-1]["role"] != "user":
        raise UsageError(f"{where}: the last of the messages is not the user's, and that is answered. Add one.")
    return [Turn(each["role"], each["content"]) for each in messages]
