from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import Cleaned, clean, normalise
from data_pipeline.config import CleaningConfig
from data_pipeline.errors import CorpusError
from data_pipeline.readers import RawDocument


def _document(data: bytes) -> RawDocument:
    return RawDocument("id", "corpus", data, "a.txt", offset=100)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"text", Cleaned("text", None)),
        (b"\xef\xbb\xbfa\r\nb\rc", Cleaned("a\nb\nc", None)),
        ("e\u0301".encode(), Cleaned("\u00e9", None)),
        (b" \n\t ", Cleaned(None, "empty")),
        (b"", Cleaned(None, "empty")),
        (b" ab ", Cleaned(None, "too_short")),
        (b"ok \xff", Cleaned(None, "invalid_utf8")),
    ],
)
def test_clean_normalises_or_drops_when_given(data: bytes, expected: Cleaned) -> None:
    assert (
        clean(_document(data), CleaningConfig(min_characters=3 if b"ab" in data else 1, invalid_utf8="drop"))
        == expected
    )


def test_clean_names_file_and_byte_when_the_text_is_not_utf8() -> None:
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-8 at byte 103 \(0xff, invalid start byte\)"):
        clean(_document(b"abc\xff"), CleaningConfig())


def test_unwrapping_makes_each_paragraph_a_line_when_lines_are_wrapped() -> None:
    text = "CHAPTER I\n\n\nIt is a truth\nuniversally  acknowledged, \n that\n \nSecond\nparagraph.\n"
    config = CleaningConfig(unwrap_lines=True)
    assert normalise(text, config) == "CHAPTER I\nIt is a truth universally  acknowledged, that\nSecond paragraph."


@given(st.text())
def test_normalise_composes_and_is_idempotent_when_repeated(text: str) -> None:
    for config in (CleaningConfig(), CleaningConfig(unwrap_lines=True)):
        once = normalise(text.lstrip("\ufeff"), config)
        assert unicodedata.is_normalized("NFC", once)
        assert "\r" not in once
    once = normalise(text.lstrip("\ufeff"), CleaningConfig())
    assert normalise(once, CleaningConfig()) == once


def test_normalise_leaves_code_points_when_told_so() -> None:
    assert normalise("e\u0301", CleaningConfig(unicode_normalization=None)) == "e\u0301"
