"""What the wall time of runs was spent on: the one figure, a bar for each run and attempt, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cluster.record.goodput import PART_WORDS, Goodput, TimeParts
from cluster.record.timeline import Part
from launcher.report.downsample import spread
from launcher.report.markup import Column, Row, by_run, left_out, section, swatch, table
from launcher.report.runs import ReportedRun
from launcher.report.units import MISSING, duration, percentage, plural

_ROWS = 400
_NOTHING = "–"
_SHOWN_SHARE = 0.0005  # of the whole: less is neither drawn nor told


def goodput_section(runs: Sequence[ReportedRun]) -> str:
    """The whole of each run, then its attempts."""
    timed = [(run, run.goodput) for run in runs if run.goodput.wall_seconds > 0]
    if not timed:
        return ""
    parts = [part for part in PART_WORDS if any(_is_shown(goodput.parts, part) for _, goodput in timed)]
    whole = _figure(timed[0][1]) if len(runs) == 1 else _comparison(timed, parts)
    bodies = [(plural(len(run.goodput.attempts), "attempt"), _attempts(run.goodput)) for run in runs]
    return section("Time", f"{whole}{_legend(timed, parts)}{by_run(runs, bodies)}")


def _figure(goodput: Goodput) -> str:
    unknown = "" if goodput.is_timed else " The record does not say what the time of its steps was spent on."
    paused = f" Pauses of {duration(goodput.paused_seconds)} are left out." if goodput.paused_seconds else ""
    return (
        f'<p class="goodput"><span class="figure">{percentage(goodput.fraction)}</span> goodput '
        f'<span class="unit">of {duration(goodput.wall_seconds)} wall time.{paused}{unknown}</span></p>'
        f"{_bar(goodput.parts, goodput.wall_seconds)}"
    )


def _comparison(timed: Sequence[tuple[ReportedRun, Goodput]], parts: Sequence[Part]) -> str:
    rows: list[Row] = []
    for run, goodput in timed:
        wall = goodput.wall_seconds
        cells = [f"{swatch(run)}{escape(run.label)}", f"<b>{percentage(goodput.fraction)}</b>", duration(wall)]
        shares = [percentage(getattr(goodput.parts, part) / wall) for part in parts]
        rows.append(("", [*cells, _bar(goodput.parts, wall), *shares]))
    head: list[Column] = [("Run", "words"), ("Goodput", "numeric"), ("Wall time", "numeric"), ("Shares", "bar")]
    return table([*head, *((PART_WORDS[part].capitalize(), "numeric") for part in parts)], rows)


def _legend(timed: Sequence[tuple[ReportedRun, Goodput]], parts: Sequence[Part]) -> str:
    """What the colours mean; for one run with what was spent."""
    items = []
    for part in parts:
        spent = ""
        if len(timed) == 1:
            goodput = timed[0][1]
            seconds = getattr(goodput.parts, part)
            spent = f" <span>{duration(seconds)}, {percentage(seconds / goodput.wall_seconds)}</span>"
        items.append(f'<li><i class="part {part}" aria-hidden="true"></i>{PART_WORDS[part]}{spent}</li>')
    return f'<ul class="parts">{"".join(items)}</ul>'


def _attempts(goodput: Goodput) -> str:
    """A row an attempt, the bars to one scale; nothing where there is but one."""
    if len(goodput.attempts) < 2:
        return ""
    parts = [part for part in PART_WORDS if any(_is_shown(one.parts, part) for one in goodput.attempts)]
    kept = spread(len(goodput.attempts), _ROWS)
    longest = max(one.parts.total for one in goodput.attempts)
    rows: list[Row] = []
    for place in kept:
        one = goodput.attempts[place]
        spent = [getattr(one.parts, part) for part in parts]
        cells = [str(one.attempt), duration(one.parts.total), _bar(one.parts, longest)]
        rows.append(("", [*cells, *(duration(seconds) if seconds else _NOTHING for seconds in spent)]))
    head: list[Column] = [("Attempt", "numeric"), ("Wall time", "numeric"), ("To scale", "bar")]
    return table([*head, *((PART_WORDS[part].capitalize(), "numeric") for part in parts)], rows) + left_out(
        len(goodput.attempts), kept
    )


def _bar(parts: TimeParts, full_seconds: float) -> str:
    """The parts side by side; `full_seconds` fill the width."""
    told = [(part, getattr(parts, part)) for part in PART_WORDS if _is_shown(parts, part)]
    pieces = "".join(
        f'<i class="part {part}" style="width: {100 * seconds / full_seconds:.3f}%" '
        f'title="{PART_WORDS[part]}: {duration(seconds)}"></i>'
        for part, seconds in told
    )
    words = ", ".join(f"{PART_WORDS[part]} {percentage(seconds / parts.total)}" for part, seconds in told)
    return f'<span class="spent" role="img" aria-label="{words or MISSING}">{pieces}</span>'


def _is_shown(parts: TimeParts, part: Part) -> bool:
    return bool(getattr(parts, part) > _SHOWN_SHARE * parts.total)
