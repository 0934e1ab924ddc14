"""How evaluations are shown: lines, tables by source and by group."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from launcher.evaluation_pages import _scored, question_notes, question_table, source_table, text_lines

FIGURES: dict[str, Any] = {
    "loss": 4.0,
    "perplexity": 54.6,
    "tokens": 1513,
    "total_tokens": 1519,
    "bytes": 5000,
    "bits_per_byte": 1.74621,
    "top1_accuracy": 0.25,
    "top5_accuracy": 0.5,
}
EMPTY = dict.fromkeys(("loss", "perplexity", "bits_per_byte", "top1_accuracy", "top5_accuracy"))


def rows_of(table: Table) -> list[list[str]]:
    """The cells of a table as it is printed, its headings first."""
    file = io.StringIO()
    Console(file=file, width=200, color_system=None).print(table)
    lines = [line for line in file.getvalue().splitlines() if line.strip() and "─" not in line]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


@pytest.mark.parametrize(("by_document", "whole"), [(True, "each document"), (False, "the split")])
def test_tokens_are_explained_when_not_all_were_scored(by_document: bool, whole: str) -> None:
    assert _scored(FIGURES, by_document=by_document) == (
        f"1,513 scored of 1,519; the first of {whole} has none before it to be predicted from"
    )


def test_text_is_told_in_lines_with_units() -> None:
    lines = text_lines({**FIGURES, "context_tokens": 256, "stride_tokens": 64}, by_document=True)
    assert lines[1:] == [
        "loss        4.0000 nats per token",
        "perplexity  54.60",
        "bits/byte   1.7462 over 5,000 UTF-8 bytes",
        "next token  the first guess in 25.0 %, among the first five in 50.0 %",
        "windows     256 tokens long, 64 apart",
    ]


def test_sources_have_a_row_each_before_the_total() -> None:
    sources = [
        {"source": "books", **FIGURES, "tokens": 1513},
        {"source": "empty", **EMPTY, "tokens": 0, "bytes": 0},
    ]
    assert rows_of(source_table({**FIGURES, "sources": sources})) == [
        ["source", "tokens", "bytes", "loss", "perplexity", "bits/byte", "top-1", "top-5"],
        ["books", "1,513", "5,000", "4.0000", "54.60", "1.7462", "25.0 %", "50.0 %"],
        ["empty", "0", "0", "n/a", "n/a", "n/a", "n/a", "n/a"],
        ["total", "1,513", "5,000", "4.0000", "54.60", "1.7462", "25.0 %", "50.0 %"],
    ]


def test_questions_have_a_row_for_each_group_before_the_total() -> None:
    figures = {
        "questions": 40,
        "truncated": 1,
        "accuracy": 0.5,
        "accuracy_interval": (0.352, 0.648),
        "accuracy_per_byte": 0.25,
        "accuracy_per_byte_interval": (0.142, 0.402),
        "chance": 0.25,
    }
    total = ["40", "50.0 %", "35.2 to 64.8", "25.0 %", "14.2 to 40.2", "25.0 %"]
    groups = [{"group": "physics", **figures}, {"group": None, **figures}]
    assert rows_of(question_table({**figures, "groups": groups})) == [
        ["group", "questions", "accuracy", "95 % interval", "per byte", "95 % interval", "chance"],
        ["physics", *total],
        ["n/a", *total],
        ["total", *total],
    ]
    assert question_notes(figures) == [
        "Intervals are Wilson's of 95 %.",
        "The context of 1 question was longer than the model reads and lost its beginning.",
    ]


def test_pairs_have_the_columns_of_what_was_counted() -> None:
    figures = {"compared": 2, "accuracy": 1.0, "accuracy_interval": (0.342, 1.0), "chance": 0.5}
    assert rows_of(question_table(figures)) == [
        ["group", "compared", "accuracy", "95 % interval", "chance"],
        ["total", "2", "100 %", "34.2 to 100.0", "50.0 %"],
    ]
    assert question_notes(figures) == ["Intervals are Wilson's of 95 %."]
