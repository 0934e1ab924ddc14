"""Files of lines: their numbers, and what is said of a mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.line_file import parse_json, read_lines, read_text, refuse_unknown_keys, require_text


def test_lines_keep_the_numbers_of_the_file_when_some_are_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\none \n \nthree\u2028still\r\n", encoding="utf-8", newline="")
    assert read_lines(path, "a", "word") == [(2, "one "), (4, "three\u2028still")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--file a: cannot be read: No such file or directory. Check the path."),
        (b"ab\xff", "--file a: not UTF-8 text (byte 2). Convert it first."),
        (b" \n\n", "--file a: the file has no word. Write one a line."),
    ],
)
def test_file_is_refused_when_it_has_no_lines(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_lines(path, "--file a", "word")
    assert str(error.value) == message


def test_text_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é\n\n", encoding="utf-8")
    assert read_text(tmp_path / "a", "a") == "é\n\n"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: parse_json("{", "a, line 3", ", or burn the file"),
            "a, line 3 is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), and "
            "every line of a .jsonl file is one object. Mend the line, or burn the file.",
        ),
        (
            lambda: refuse_unknown_keys({"a": 1, "d": 2}, "a, line 3", "a thing", ("a", "b", "c")),
            "a, line 3 has the key 'd', which would be ignored. Remove it: a thing has a, b and c.",
        ),
        (
            lambda: require_text("a\udc00", "a, line 3"),
            "a, line 3: 'a\\udc00' has half a UTF-16 pair at character 1, and is no text. Remove it.",
        ),
    ],
)
def test_line_is_refused_when_it_is_not_what_it_should_be(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        check()
    assert str(error.value) == message


def test_line_is_what_it_says() -> None:
    assert parse_json('{"a": [1]}', "a, line 3") == {"a": [1]}
