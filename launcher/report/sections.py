"""Evaluation, events and checkpoints, as tables. Every text of a run passes through `escape` on its way in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

import numpy as np

from launcher.report.comparison import cautions
from launcher.report.downsample import spread
from launcher.report.events import describe, title, tone
from launcher.report.figure_names import title_of
from launcher.report.headline import best_evaluation, chosen_figure, learns_labels, perplexity
from launcher.report.json_facts import whole
from launcher.report.markup import Column, Row, by_run, left_out, section, swatch, table
from launcher.report.metrics import Evaluation
from launcher.report.record import Checkpoint, Event, RunRecord
from launcher.report.runs import ReportedRun
from launcher.report.units import MISSING, byte_size, duration, moment, plural, significant
from launcher.report.words import topology_of, topology_words

_ROWS = 400
_BEST = ' <b class="badge good">best</b>'
_FIGURES: tuple[Column, ...] = (("Loss, nats/token", "numeric"), ("Perplexity, per token", "numeric"))


def evaluation_section(runs: Sequence[ReportedRun]) -> str:
    """The best of every dataset and run where there are several runs; then each run's evaluations, newest first."""
    summary = _best_by_dataset(runs) if len(runs) > 1 else ""
    bodies = [(plural(len(run.record.evaluations), "evaluation"), _evaluations(run)) for run in runs]
    return section("Evaluation", summary + by_run(runs, bodies))


def _best_by_dataset(runs: Sequence[ReportedRun]) -> str:
    pairs = sorted({(line.name, run.place) for run in runs for line in run.record.evaluations})
    top = {} if cautions(runs) else _lowest_by_dataset(runs)
    rows: list[Row] = []
    for name, place in pairs:
        run = runs[place]
        lines = [line for line in run.record.evaluations if line.name == name]
        cells = [escape(name), f"{swatch(run)}{escape(run.label)}"]
        if (best := best_evaluation(lines, name)) is None:
            cells += ["not finite", MISSING, MISSING]
        else:
            badge = _BEST if perplexity(best) == top.get(name) else ""
            cells += [significant(perplexity(best)) + badge, f"{best.step:,}", _whole(run.axes.tokens_at(best.step))]
        rows.append(("", [*cells, significant(perplexity(lines[-1])), f"{lines[-1].step:,}"]))
    figures = ("Best perplexity, per token", "At step", "Tokens by then", "Last perplexity", "At step")
    return table([("Dataset", "words"), ("Run", "words"), *((name, "numeric") for name in figures)], rows)


def _lowest_by_dataset(runs: Sequence[ReportedRun]) -> dict[str, float]:
    """The best perplexity of any run, of datasets that several runs were evaluated on."""
    names = {line.name for run in runs for line in run.record.evaluations}
    found = {}
    for name in names:
        best = [best_evaluation(run.record.evaluations, name) for run in runs]
        scores = [score for line in best if line is not None and (score := perplexity(line)) is not None]
        if len(scores) > 1:
            found[name] = min(scores)
    return found


def _evaluations(run: ReportedRun) -> str:
    lines = run.record.evaluations
    chosen = chosen_figure(run.record) if learns_labels(run.record) else None
    best = [best_evaluation(lines, name, chosen) for name in {line.name for line in lines}]
    marked = {place for place, line in enumerate(lines) if any(line is other for other in best)}
    others = sorted({key for line in lines for key in line.values} - {"eval/loss", "eval/perplexity"})
    kept = spread(len(lines), _ROWS, marked)
    has_perplexity = not learns_labels(run.record)
    rows = [_evaluation_row(lines[place], run, others, place in marked, has_perplexity) for place in reversed(kept)]
    head: list[Column] = [("Step", "numeric"), ("Dataset", "words"), ("Tokens trained", "numeric"), ("After", "tight")]
    head += [
        *(_FIGURES if has_perplexity else (("Loss, per label", "numeric"),)),
        *((title_of(key.removeprefix("eval/")), "numeric") for key in others),
    ]
    return table(head, rows) + left_out(len(lines), kept)


def _evaluation_row(line: Evaluation, run: ReportedRun, others: list[str], is_best: bool, has_perplexity: bool) -> Row:
    badge = _BEST if is_best else ""
    lost = "eval/perplexity" in line.values and perplexity(line) is None
    cells = [
        f"{line.step:,}",
        escape(line.name),
        _whole(run.axes.tokens_at(line.step)),
        duration(run.axes.at_step(line.step, line.time_unix_seconds)["seconds"]),
        _value(line, "eval/loss"),
    ]
    if has_perplexity:
        cells.append("not finite" if lost else significant(perplexity(line)) + badge)
    chosen = None if has_perplexity else chosen_figure(run.record)
    figures = [
        _value(line, key) + (badge if chosen is not None and key == f"eval/{chosen.name}" else "") for key in others
    ]
    return ("best" if is_best else ""), cells + figures


def _value(line: Evaluation, key: str) -> str:
    value = line.values.get(key)
    return "not finite" if value is not None and np.isinf(value) else significant(value)


def events_section(runs: Sequence[ReportedRun]) -> str:
    """Each run's life, event by event."""
    return section("Events", by_run(runs, [(_incidents(run.record), _events(run)) for run in runs]))


def _incidents(record: RunRecord) -> str:
    """What a run suffered, in brief."""
    grave = [title(event) for event in record.events if tone(event) in ("warn", "bad")]
    counted = [f"{grave.count(name)} × {name}" for name in dict.fromkeys(grave)]
    return ", ".join([plural(len(record.events), "event"), *counted])


def _events(run: ReportedRun) -> str:
    """Checkpoints saved one after the other share a row."""
    groups: list[list[Event]] = []
    for routine, group in groupby(run.record.events, key=_routine):
        events = list(group)
        groups += [events] if routine is not None else [[event] for event in events]
    kept = spread(len(groups), _ROWS)
    rows = [_events_row(groups[place], run) for place in kept]
    head: list[Column] = [("Time", "tight"), ("After", "tight"), ("Event", "tight"), ("Step", "numeric")]
    return table([*head, ("Attempt", "numeric"), ("Details", "words")], rows) + left_out(len(groups), kept)


def _routine(event: Event) -> int | None:
    """The same for neighbours that share a row: the attempt of a routine event; None for the others."""
    return (event.attempt or 0) if tone(event) == "tick" else None


def _events_row(group: list[Event], run: ReportedRun) -> Row:
    first, last = group[0], group[-1]
    times = f" × {len(group):,}" if len(group) > 1 else ""
    steps = [f"{step:,}" for step in dict.fromkeys((first.step, last.step)) if step is not None]
    details = escape(describe(last))
    return "", [
        moment(last.time_unix_seconds),
        duration(run.axes.since_begin(last.time_unix_seconds)),
        f'<b class="badge {tone(first)}">{escape(title(first))}{times}</b>',
        " to ".join(steps),
        "" if first.attempt is None else str(first.attempt),
        f"the last: {details}" if times and details else details,
    ]


def checkpoints_section(runs: Sequence[ReportedRun]) -> str:
    """The published checkpoints."""
    bodies = [(plural(len(run.record.checkpoints), "checkpoint"), _checkpoints(run.record)) for run in runs]
    return section("Checkpoints", by_run(runs, bodies))


def _checkpoints(record: RunRecord) -> str:
    kept = spread(len(record.checkpoints), _ROWS)
    rows: list[Row] = [("", _checkpoint_cells(record.checkpoints[place])) for place in kept]
    head: list[Column] = [("Step", "numeric"), ("Directory", "words"), ("Written by", "words")]
    head += [("Files", "numeric"), ("Size", "numeric"), ("Next sequence", "numeric")]
    return table(head, rows) + left_out(len(record.checkpoints), kept)


def _checkpoint_cells(checkpoint: Checkpoint) -> list[str]:
    manifest = checkpoint.manifest
    run = manifest.get("run")
    facts = {**manifest, **run} if isinstance(run, dict) else manifest
    return [
        _whole(checkpoint.step),
        f"<code>{escape(checkpoint.directory)}</code>",
        escape(topology_words(topology_of(facts))) or MISSING,
        _whole(checkpoint.files),
        byte_size(checkpoint.size_bytes),
        _whole(whole(facts.get("data_position"))),
    ]


def _whole(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"
