"""Files of questions and of minimal pairs: what is read of a line, and what is refused with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.question_file import ChoiceQuestion, TextPair, read_choices, read_pairs

CHOICE = 'Write the line as {{"question": "The sky is", "choices": ["blue", "green"], "answer": 0}}.'
PAIR = 'Write the line as {{"good": "She runs.", "bad": "She run."}}.'


def test_questions_are_the_objects_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"question": "The sky is", "choices": ["blue", "green", "天"], "answer": 2, "group": "colours"}\n\n'
        '{"context": "", "choices": ["a", "b"], "answer": 0, "delimiter": ""}\n',
        encoding="utf-8",
    )
    named = f"--choices {path}, line"
    assert read_choices(path) == [
        ChoiceQuestion(
            where=f"{named} 1", context="The sky is", choices=("blue", "green", "天"), answer=2, group="colours"
        ),
        ChoiceQuestion(where=f"{named} 3", context="", choices=("a", "b"), answer=0, delimiter=""),
    ]


def test_pairs_are_the_objects_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"good": "She runs.", "bad": "She run.", "group": "agreement"}\n{"good": "a", "bad": "b"}\n')
    named = f"--pairs {path}, line"
    assert read_pairs(path) == [
        TextPair(where=f"{named} 1", good="She runs.", bad="She run.", group="agreement"),
        TextPair(where=f"{named} 2", good="a", bad="b"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "--choices {path}: the file has no question. Write one a line."),
        (
            "Emma",
            "--choices {path}, line 1 is not JSON (Expecting value: line 1 column 1 (char 0)), and every line of a "
            ".jsonl file is one object. Mend the line.",
        ),
        (
            "[1]",
            "--choices {path}, line 1 holds a list, and every line of a .jsonl file is one object. Mend the line.",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 0, "id": 7}',
            "--choices {path}, line 1 has the key 'id', which would be ignored. Remove it: a question has context, "
            "question, choices, answer, delimiter and group.",
        ),
        (
            '{"choices": ["b", "c"], "answer": 0}',
            "--choices {path}, line 1 has neither `context` nor `question`, and needs one of them. " + CHOICE,
        ),
        (
            '{"context": "a", "question": "a", "choices": ["b", "c"], "answer": 0}',
            "--choices {path}, line 1 has both `context` and `question`, and needs one of them. " + CHOICE,
        ),
        (
            '{"question": 3, "choices": ["b", "c"], "answer": 0}',
            "--choices {path}, line 1: question is 3, and must be a text. " + CHOICE,
        ),
        (
            '{"question": "a", "answer": 0}',
            "--choices {path}, line 1: choices is None, and must be a list of two texts or more. " + CHOICE,
        ),
        (
            '{"question": "a", "choices": ["b"], "answer": 0}',
            "--choices {path}, line 1: choices is ['b'], and must be a list of two texts or more. " + CHOICE,
        ),
        (
            '{"question": "a", "choices": ["b", ""], "answer": 0}',
            "--choices {path}, line 1: choice 1 is '', and must be a text of a letter or more. " + CHOICE,
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 2}',
            "--choices {path}, line 1: answer is 2, and must be the number of the right choice, 0 to 1. Change it.",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": true}',
            "--choices {path}, line 1: answer is True, and must be the number of the right choice, 0 to 1. Change it.",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 0, "delimiter": 1}',
            "--choices {path}, line 1: delimiter is 1, and must be a text. " + CHOICE,
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 0, "group": ""}',
            "--choices {path}, line 1: group is '', and must be a text of a letter or more. " + CHOICE,
        ),
        (
            '{"question": "\\ud83d", "choices": ["b", "c"], "answer": 0}',
            "--choices {path}, line 1: '\\ud83d' has half a UTF-16 pair at character 0, and is no text. Remove it.",
        ),
    ],
)
def test_question_is_refused_when_it_is_not_what_it_should_be(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_choices(path)
    assert str(error.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"good": "a"}',
            "--pairs {path}, line 1: there is no `bad`, which must be a text of a letter or more. " + PAIR,
        ),
        (
            '{"good": "", "bad": "b"}',
            "--pairs {path}, line 1: good is '', and must be a text of a letter or more. " + PAIR,
        ),
        (
            '{"good": "a", "bad": "a"}',
            "--pairs {path}, line 1: good and bad are one text, 'a', of which none is likelier. Remove the line.",
        ),
        (
            '{"good": "a", "bad": "b", "field": "syntax"}',
            "--pairs {path}, line 1 has the key 'field', which would be ignored. Remove it: a pair has good, bad and "
            "group.",
        ),
    ],
)
def test_pair_is_refused_when_it_is_not_what_it_should_be(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_pairs(path)
    assert str(error.value) == message.format(path=path)


def test_line_is_counted_in_the_file_when_blank_ones_come_before(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"good": "a", "bad": "b"}\n\n{}\n')
    with pytest.raises(UsageError, match=re.escape(f"--pairs {path}, line 4: there is no `good`")):
        read_pairs(path)
