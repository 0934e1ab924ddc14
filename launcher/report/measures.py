"""What was measured of the predictions for each dataset and split: figures with intervals, plots, tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from launcher.report.downsample import spread
from launcher.report.figure_names import name_of
from launcher.report.markup import Column, Row, by_run, fold, left_out, section, swatch, table
from launcher.report.measure_plots import measure_plots
from launcher.report.record import NamedMeasures
from launcher.report.runs import ReportedRun
from launcher.report.units import MISSING, plural, significant
from launcher.report.words import heading, label
from llm.metrics.measured import Cell, Measured, Table

_ROWS = 200
_OPEN = 2  # of the sets of one run
_TABLES = {
    "gaps": "Largest gaps between groups",
    "classes": "By class",
    "averages": "Averages",
    "entity_classes": "By type of entity",
    "entity_averages": "Averages over types of entities",
    "confused": "Commonest mistakes",
    "residuals": "Residuals: predicted less true",
}
"""The tables that are shown as such, in this order; plots show the others."""


def measures_section(runs: Sequence[ReportedRun]) -> str:
    """The figures that runs are chosen by where there are several, then each run's measures."""
    summary = _summary(runs) if len(runs) > 1 else ""
    bodies = [(plural(len(run.record.measures), "dataset"), _measures(run)) for run in runs]
    return section("Measures", summary + by_run(runs, bodies))


def _summary(runs: Sequence[ReportedRun]) -> str:
    """A row for each dataset and run."""
    lines = sorted(
        ((_title(named), run.place, named.measured) for run in runs for named in run.record.measures),
        key=lambda line: line[:2],
    )
    rows: list[Row] = []
    for title, place, measured in lines:
        run, name = runs[place], measured.selection.name
        cells = [escape(title), f"{swatch(run)}{escape(run.label)}", escape(name_of(name))]
        figures = [significant(measured.headline.get(name)), _interval(measured, name), f"{measured.examples:,}"]
        rows.append(("", [*cells, *figures, MISSING if measured.step is None else f"{measured.step:,}"]))
    head: list[Column] = [("Dataset", "words"), ("Run", "words"), ("Figure", "words"), ("Value", "numeric")]
    return table([*head, ("Interval", "tight"), ("Examples", "numeric"), ("At step", "numeric")], rows)


def _measures(run: ReportedRun) -> str:
    return "".join(
        fold(f"{escape(_title(named))} <small>{escape(_extent(named.measured))}</small>", _body(named.measured),
             is_open=place < _OPEN, style="measures")
        for place, named in enumerate(run.record.measures)
    )  # fmt: skip


def _title(named: NamedMeasures) -> str:
    told = [part for part in (named.measured.dataset, named.measured.split) if part]
    return ", ".join(told) or named.name


def _extent(measured: Measured) -> str:
    step = "" if measured.step is None else f", step {measured.step:,}"
    return f"{name_of(measured.task)}, {plural(measured.examples, 'example')}{step}"


def _body(measured: Measured) -> str:
    return f'<div class="overview">{_headline(measured)}{measure_plots(measured)}</div>{_tables(measured)}'


def _headline(measured: Measured) -> str:
    chosen = measured.selection.name
    rows: list[Row] = []
    for name in sorted(measured.headline, key=lambda name: name != chosen):
        badge = ' <b class="badge">chosen by</b>' if name == chosen else ""
        words = heading_of(name)
        cells = [f"{escape(words)}{badge}", significant(measured.headline[name]), _interval(measured, name)]
        rows.append(("best" if name == chosen else "", cells))
    confidence = f"{100 * measured.confidence:g} % interval" if measured.confidence is not None else "Interval"
    return table([("Figure", "words"), ("Value", "numeric"), (confidence, "tight")], rows)


def heading_of(key: str) -> str:
    """A figure's name in words that begin a line."""
    words = name_of(key)
    return words[:1].upper() + words[1:]


def _interval(measured: Measured, name: str) -> str:
    found = measured.intervals.get(name)
    return MISSING if found is None else f"{significant(found[0], 3)} to {significant(found[1], 3)}"


def _tables(measured: Measured) -> str:
    slices = sorted(name for name in measured.tables if name.startswith("slices/"))
    parts = [_slices(name.removeprefix("slices/"), measured.tables[name]) for name in slices]
    parts += [_plain(title, measured.tables[name]) for name, title in _TABLES.items() if name in measured.tables]
    return "".join(parts)


def _plain(title: str, found: Table) -> str:
    kept = spread(len(found.rows), _ROWS)
    numeric = [not any(isinstance(row[place], str) for row in found.rows) for place in range(len(found.columns))]
    head: list[Column] = [
        (heading_of(name), "numeric" if is_numeric else "words")
        for name, is_numeric in zip(found.columns, numeric, strict=True)
    ]
    rows: list[Row] = [("", [_words(cell) for cell in found.rows[place]]) for place in kept]
    return f"<h4>{escape(title)}</h4>{table(head, rows)}{left_out(len(found.rows), kept)}" if rows else ""


def _slices(column: str, found: Table) -> str:
    """A row a group, with its interval drawn on one scale."""
    figure = found.columns[2]
    ends = [float(cell) for row in found.rows for cell in row[2:] if isinstance(cell, int | float)]
    rows: list[Row] = []
    for group, examples, value, low, high in found.rows:
        cells = [_words(group), _words(examples), _words(value)]
        interval = MISSING if low is None or high is None else f"{_words(low)} to {_words(high)}"
        rows.append(("", [*cells, interval, _range(ends, value, low, high)]))
    head: list[Column] = [(heading(column), "words"), ("Examples", "numeric"), (heading_of(figure), "numeric")]
    return (
        f"<h4>{escape(f'{heading_of(figure)} by {label(column)}')}</h4>"
        f"{table([*head, ('Interval', 'tight'), ('To scale', 'bar')], rows)}"
    )


def _range(ends: Sequence[float], value: Cell, low: Cell, high: Cell) -> str:
    """A dot where the value is and a bar over its interval; the scale reaches from the lowest end to the highest."""
    if not isinstance(value, int | float):
        return MISSING
    least, reach = min(ends), (max(ends) - min(ends)) or 1.0
    at = 100 * (value - least) / reach
    bar = ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        begin, width = 100 * (low - least) / reach, 100 * (high - low) / reach
        bar = f'<i class="whisker" style="left: {begin:.2f}%; width: {width:.2f}%"></i>'
    return f'<span class="range" aria-hidden="true">{bar}<i class="dot" style="left: {at:.2f}%"></i></span>'


def _words(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f"{cell:,}" if isinstance(cell, int) else significant(cell)
