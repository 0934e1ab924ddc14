"""The building blocks of the sections, as HTML. Cells and bodies are HTML already; every name is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from launcher.report.runs import ReportedRun
from launcher.report.units import MISSING

COLOURS = 6
"""Of runs; further runs take them again, dashed."""
Column = tuple[str, Literal["numeric", "tight", "words", "bar"]]
"""Heading and kind: figures align right, tight texts stay on one line, words wrap, bars take the room that is left."""
Row = tuple[str, Sequence[str]]
"""Class and cells."""
Fact = tuple[str, Sequence[str | None]]
"""Its name as HTML, and its plain text for each run, None where a run lacks it; without texts it is a heading."""
_NAME_WIDTH, _RUN_WIDTH = 250, 130  # CSS pixels that a table of several runs has at least


def section(name: str, body: str, note: str = "") -> str:
    """A section with its heading; empty without a body."""
    if not body:
        return ""
    anchor = name.lower().replace(",", "").replace(" ", "-")
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escape(name)}</h2>{body}{note}</section>'
    )


def table(head: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table that becomes a list of blocks on a narrow screen. Empty without rows."""
    if not rows:
        return ""
    header = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in head)
    body = "".join(
        f'<tr class="{style}">'
        + "".join(
            f'<td class="{kind}" data-label="{escape(name)}"><span>{cell}</span></td>' if cell else "<td></td>"
            for cell, (name, kind) in zip(cells, head, strict=True)
        )
        + "</tr>"
        for style, cells in rows
    )
    return _scroll(f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>")


def side_by_side(runs: Sequence[ReportedRun], rows: Sequence[Fact]) -> str:
    """One row a fact, one column a run; facts that are the same everywhere are said once, others are marked.

    Args:
        runs: The columns.
        rows: The facts, and headings between them.
    """
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{swatch(run)}{escape(run.label)}</th>' for run in runs)
    body = "".join(_fact_row(runs, name, texts) for name, texts in rows)
    width = _NAME_WIDTH + _RUN_WIDTH * len(runs)
    return _scroll(
        f'<table class="versus" style="min-width: {width}px">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _fact_row(runs: Sequence[ReportedRun], name: str, texts: Sequence[str | None]) -> str:
    if not texts:
        return f'<tr class="group"><th scope="rowgroup" colspan="{len(runs) + 1}">{name}</th></tr>'
    shown = [MISSING if text is None else escape(text) for text in texts]
    if len(set(texts)) == 1:
        return f'<tr><th scope="row">{name}</th><td colspan="{len(runs)}"><span>{shown[0]}</span></td></tr>'
    cells = "".join(
        f'<td data-label="{escape(run.label)}"><span>{text}</span></td>' for run, text in zip(runs, shown, strict=True)
    )
    return f'<tr class="differs"><th scope="row">{name}</th>{cells}</tr>'


def _scroll(inner: str) -> str:
    # Focusable, so that the keyboard can scroll a table that is taller or wider than its room.
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Table">{inner}</div>'


def left_out(count: int, kept: Sequence[int]) -> str:
    """What was thinned."""
    missing = count - len(kept)
    if not missing:
        return ""
    return f'<p class="left-out">{missing:,} of {count:,} are left out here; the run directory has them all.</p>'


def by_run(runs: Sequence[ReportedRun], bodies: Iterable[tuple[str, str]], *, is_open: bool = False) -> str:
    """What each run has to show: as it is for one run, folded under the run's name for several.

    Args:
        runs: The runs.
        bodies: For each of them plain words for the fold, and the body; runs without a body are left out.
        is_open: Unfold all of them.
    """
    pairs = [(run, words, body) for run, (words, body) in zip(runs, bodies, strict=True) if body]
    if len(runs) == 1:
        return "".join(body for _, _, body in pairs)
    return "".join(
        fold(f"{swatch(run)}{escape(run.label)} <small>{escape(words)}</small>", body, is_open=is_open)
        for run, words, body in pairs
    )


def fold(summary: str, body: str, *, is_open: bool = False, style: str = "") -> str:
    """A part that the reader opens."""
    opened = " open" if is_open else ""
    return f'<details class="{style}"{opened}><summary>{summary}</summary><div class="folded">{body}</div></details>'


def swatch(run: ReportedRun) -> str:
    """The run's colour, where its name stands."""
    dashed = " dashed" if run.place >= COLOURS else ""
    return f'<i class="swatch run-{run.place % COLOURS}{dashed}" aria-hidden="true"></i>'
