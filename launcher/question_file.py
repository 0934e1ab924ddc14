"""Questions for a model out of a file of JSON lines: one of several choices, or the better of two texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.line_file import parse_json, read_lines, refuse_unknown_keys, require_text

_CONTEXTS = ("context", "question")
_CHOICE_KEYS = (*_CONTEXTS, "choices", "answer", "delimiter", "group")
_CHOICE_EXAMPLE = '{"question": "The sky is", "choices": ["blue", "green"], "answer": 0}'
_PAIR_KEYS = ("good", "bad", "group")
_PAIR_EXAMPLE = '{"good": "She runs.", "bad": "She run."}'


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A context and what may continue it."""

    where: str
    """File and line, for messages."""
    context: str
    """May be empty."""
    choices: tuple[str, ...]
    """Two at least, none empty."""
    answer: int
    """Number of the right one, from 0."""
    delimiter: str = " "
    """Between context and choice, scored with the choice; lm-eval's target_delimiter."""
    group: str | None = None
    """Under which it is counted apart."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two texts that differ in what makes one of them wrong (a minimal pair; BLiMP, arXiv:1912.00582)."""

    where: str
    """File and line, for messages."""
    good: str
    bad: str
    group: str | None = None
    """Under which it is counted apart."""


def read_choices(path: Path) -> list[ChoiceQuestion]:
    """Read questions, in their order; blank lines are passed over.

    Args:
        path: UTF-8, on each line an object with `context` or `question`, `choices` and `answer`, and where wanted
            `delimiter` and `group`.

    Raises:
        UsageError: It cannot be read, has no question, or a line is not what it should be.
    """
    named = f"--choices {path}"
    return [_choice(*_fields(line, f"{named}, line {number}")) for number, line in read_lines(path, named, "question")]


def read_pairs(path: Path) -> list[TextPair]:
    """Read pairs of texts, in their order; blank lines are passed over.

    Args:
        path: UTF-8, on each line an object with `good` and `bad`, and where wanted `group`.

    Raises:
        UsageError: It cannot be read, has no pair, or a line is not what it should be.
    """
    named = f"--pairs {path}"
    return [_pair(*_fields(line, f"{named}, line {number}")) for number, line in read_lines(path, named, "pair")]


def _fields(line: str, where: str) -> tuple[dict[str, Any], str]:
    fields = parse_json(line, where)
    if not isinstance(fields, dict):
        raise UsageError(
            f"{where} holds a {type(fields).__name__}, and every line of a .jsonl file is one object. Mend the line."
        )
    return fields, where


def _choice(fields: dict[str, Any], where: str) -> ChoiceQuestion:
    refuse_unknown_keys(fields, where, "a question", _CHOICE_KEYS)
    contexts = [key for key in _CONTEXTS if key in fields]
    if len(contexts) != 1:
        state = "both `context` and `question`" if contexts else "neither `context` nor `question`"
        raise UsageError(f"{where} has {state}, and needs one of them. Write the line as {_CHOICE_EXAMPLE}.")
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UsageError(
            f"{where}: choices is {choices!r}, and must be a list of two texts or more. Write the line as "
            f"{_CHOICE_EXAMPLE}."
        )
    answer = fields.get("answer")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UsageError(
            f"{where}: answer is {answer!r}, and must be the number of the right choice, 0 to {len(choices) - 1}. "
            "Change it."
        )
    return ChoiceQuestion(
        where=where,
        context=_text(fields, contexts[0], where, _CHOICE_EXAMPLE, empty=True),
        choices=tuple(
            _text({f"choice {number}": choice}, f"choice {number}", where, _CHOICE_EXAMPLE)
            for number, choice in enumerate(choices)
        ),
        answer=answer,
        delimiter=_text({"delimiter": " "} | fields, "delimiter", where, _CHOICE_EXAMPLE, empty=True),
        group=_group(fields, where, _CHOICE_EXAMPLE),
    )


def _pair(fields: dict[str, Any], where: str) -> TextPair:
    refuse_unknown_keys(fields, where, "a pair", _PAIR_KEYS)
    good, bad = (_text(fields, key, where, _PAIR_EXAMPLE) for key in ("good", "bad"))
    if good == bad:
        raise UsageError(f"{where}: good and bad are one text, {good!r}, of which none is likelier. Remove the line.")
    return TextPair(where=where, good=good, bad=bad, group=_group(fields, where, _PAIR_EXAMPLE))


def _group(fields: dict[str, Any], where: str, example: str) -> str | None:
    return _text(fields, "group", where, example) if fields.get("group") is not None else None


def _text(fields: dict[str, Any], key: str, where: str, example: str, *, empty: bool = False) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not (value or empty):
        state = f"{key} is {value!r}, and" if key in fields else f"there is no `{key}`, which"
        raise UsageError(
            f"{where}: {state} must be a text{'' if empty else ' of a letter or more'}. Write the line as {example}."
        )
    require_text(value, where)
    return value
