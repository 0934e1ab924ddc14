"""The two consoles: results go to stdout, everything that is said on the way to stderr."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def results() -> Console:
    """Console for what a verb was asked for; safe to pipe."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def messages() -> Console:
    """Console for progress, events and errors."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def is_interactive(console: Console) -> bool:
    """Whether a person watches: only then are bars drawn, whatever FORCE_COLOR asks of the colours."""
    return console.file.isatty() and not console.is_dumb_terminal


def table(*columns: str, numbers_from: int | None = None) -> Table:
    """Table that cuts nothing short.

    Args:
        columns: Headings.
        numbers_from: First of the columns that are aligned right.
    """
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        number = numbers_from is not None and index >= numbers_from
        result.add_column(column, overflow="fold", justify="right" if number else "left")
    return result


def say_error(message: str) -> None:
    """Print one red block."""
    messages().print(Text.assemble(("error: ", "bold red"), (message, "red")))
