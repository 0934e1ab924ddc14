"""Texts to predict for, out of files and standard input."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.errors import UsageError
from launcher.text_lines import TextLine, read_lines


def test_lines_are_texts_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone \n{two}\r\n", encoding="utf-8")
    assert list(read_lines(path, "text", words=False)) == [
        TextLine(text="one ", fields={"text": "one "}),
        TextLine(text="{two}", fields={"text": "{two}"}),
    ]


def test_objects_give_back_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a b", "id": 7}\n', encoding="utf-8")
    fields = {"body": "a b", "id": 7}
    assert list(read_lines(path, "body", words=False)) == [TextLine(text="a b", fields=fields)]
    assert list(read_lines(path, "body", words=True)) == [TextLine(text=["a", "b"], fields=fields)]


def test_standard_input_may_mix_texts_and_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(b'plain text\n{"text": ["two", "words"]}\n')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    found = [line.text for line in read_lines(Path("-"), "text", words=True)]
    assert found == [["plain", "text"], ["two", "words"]]


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (b'{"text": ""}', False, r"line 2: '' under 'text' must be a text, and not empty. Mend the line."),
        (b'{"text": 3}', False, r"line 2: 3 under 'text' must be a text, and not empty"),
        (b'{"text": ["a", ""]}', True, r"must be a text or a list of words, and not empty"),
        (b'{"text": []}', True, r"must be a text or a list of words, and not empty"),
        (b'{"body": "a"}', False, r"line 2: no object with the key 'text'; it has 'body'. Set --text-field"),
        (b'{"text": "a", "prediction": 1}', False, r"line 2: the key 'prediction' would be replaced by the answer"),
        (b"[1]", False, r"line 2: no object with the key 'text'; it has none"),
        (b"{", False, r"line 2: not JSON"),
        (b'{"text": "a\\ud800"}', False, r"line 2: .* has half a UTF-16 pair at character 11, and is no text"),
        (b'{"text": "a", "id": "\\ud800"}', False, r"line 2: .* has half a UTF-16 pair"),
        (b"\xff", False, r"line 2: not UTF-8 text \(byte 0\). Convert it first."),
    ],
)
def test_line_that_asks_nothing_is_refused_with_its_place(
    content: bytes, words: bool, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + content + b"\n")
    lines = read_lines(path, "text", words=words)
    assert next(lines).fields == {"text": "fine"}
    with pytest.raises(UsageError, match=message):
        next(lines)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.txt: cannot be read: No such file"):
        next(read_lines(tmp_path / "none.txt", "text", words=False))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl.gz"])
def test_table_is_not_taken_for_text(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"texts are read from JSON lines \(.jsonl\) or a file with one a line"):
        next(read_lines(tmp_path / name, "text", words=False))


def test_blank_line_of_a_text_file_is_refused_so_that_answers_stay_beside_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n \ntwo\n", encoding="utf-8")
    lines = read_lines(path, "text", words=False)
    next(lines)
    with pytest.raises(UsageError, match=r"line 2: there is no text to predict for. Remove the line."):
        next(lines)
