"""Markdown in which text from anywhere stays text: it can neither end its place nor become markup, links or HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FENCE = re.compile("`+")
_LONGEST_INLINE = 160  # characters


def inert(text: object, longest: int = _LONGEST_INLINE) -> str:
    """A text on one line as a code span, cut to `longest` characters.

    Control characters, line ends and marks that turn the direction of writing become blanks.
    """
    line = " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
    if len(line) > longest:
        line = line[:longest].rstrip() + " …"
    if not line:
        return ""
    fence = _fence(line, 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def block(text: str, most_lines: int) -> str:
    """Lines as a fenced block, cut in the middle where there are more than `most_lines`."""
    lines = ["".join(one if one.isprintable() else " " for one in line.expandtabs(4)) for line in text.splitlines()]
    if len(lines) > most_lines:
        head = most_lines // 3
        cut = len(lines) - most_lines
        lines = [*lines[:head], f"[... {cut} lines are left out here ...]", *lines[head + cut :]]
    fence = _fence("\n".join(lines), 3)
    return "\n".join([fence, *lines, fence])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")  # which divides cells even within a code span


def _fence(text: str, least: int) -> str:
    """Backticks, more in a row than the text has anywhere."""
    return "`" * max(least, 1 + max((len(found) for found in _FENCE.findall(text)), default=0))
