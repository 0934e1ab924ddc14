from __future__ import annotations

import pytest

from cluster.record.markdown import block, inert, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "`plain`"),
        ("", ""),
        (" \n\t ", ""),
        ("two\nlines\x00\x1b[31m", "`two lines [31m`"),
        ("<script>[x](y)**", "`<script>[x](y)**`"),
        ("a `tick`", "`` a `tick` ``"),
        ("``", "``` `` ```"),
        ("right\u202eleft", "`right left`"),
        (57, "`57`"),
    ],
)
def test_inert_keeps_text_as_text(text: object, expected: str) -> None:
    assert inert(text) == expected


def test_inert_cuts_long_text() -> None:
    assert inert("word " * 100, longest=10) == "`word word …`"


def test_table_escapes_what_would_divide_a_cell() -> None:
    assert table(("A", "B"), [(inert("x|y"), "z")]) == "| A | B |\n| --- | --- |\n| `x\\|y` | z |"


def test_block_fences_longer_than_anything_within() -> None:
    assert block("a\n````\n\tb\x1b", 5) == "`````\na\n````\n    b \n`````"


def test_block_cuts_in_the_middle_when_there_are_too_many_lines() -> None:
    lines = block("\n".join(str(number) for number in range(100)), 9).splitlines()
    assert lines[1:5] == ["0", "1", "2", "[... 91 lines are left out here ...]"]
    assert lines[5:-1] == ["94", "95", "96", "97", "98", "99"]
