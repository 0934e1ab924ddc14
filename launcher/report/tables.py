"""The sections under the charts, as HTML. Every text of the run passes through `escape` on its way in."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

from launcher.report.axes import RunAxes
from launcher.report.downsample import spread
from launcher.report.events import describe, fact, flat, label, title, tone, topology_of, topology_words
from launcher.report.headline import Card, best_evaluation, perplexity
from launcher.report.json_facts import whole
from launcher.report.metrics import Evaluation
from launcher.report.record import Checkpoint, Event, RunRecord
from launcher.report.units import MISSING, byte_size, duration, moment, significant

_ROWS = 400
_SAMPLES = 40
_SAMPLE_CHARACTERS = 4000
_YAML_LINE = re.compile(r"(\s*(?:- )?)([^\s:#][^:#]*)(:)(\s.*|)")


def cards(figures: list[Card]) -> str:
    """The headline."""
    return "".join(
        f'<div class="card"><dt>{escape(card.label)}</dt>'
        f'<dd><span class="figure">{escape(card.value)}</span> <span class="unit">{escape(card.unit)}</span>'
        f'<p class="note">{escape(card.note)}</p></dd></div>'
        for card in figures
    )


def complaints(found: list[str]) -> str:
    """What could not be read."""
    if not found:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<aside class="complaints" aria-label="What could not be read"><ul>{items}</ul></aside>'


def evaluation_section(record: RunRecord, axes: RunAxes) -> str:
    """Evaluations, newest first, the best of each dataset marked."""
    lines = record.evaluations
    best = [best_evaluation(lines, name) for name in {line.name for line in lines}]
    marked = {place for place, line in enumerate(lines) if any(line is other for other in best)}
    others = sorted({key for line in lines for key in line.values} - {"eval/loss", "eval/perplexity"})
    kept = spread(len(lines), _ROWS, marked)
    rows = [_evaluation_row(lines[place], axes, others, place in marked) for place in reversed(kept)]
    head = ["Step", "Dataset", "Tokens trained", "After", "Loss, nats/token", "Perplexity, per token"]
    head += [key.removeprefix("eval/").replace("_", " ") for key in others]
    return _section("Evaluation", _table(head, rows, numeric={0, *range(2, len(head))}), _left_out(len(lines), kept))


def _evaluation_row(line: Evaluation, axes: RunAxes, others: list[str], is_best: bool) -> tuple[str, list[str]]:
    tokens = axes.tokens_at(line.step)
    seconds = axes.at_step(line.step, line.time_unix_seconds)["seconds"]
    badge = ' <span class="badge good">best</span>' if is_best else ""
    cells = [
        f"{line.step:,}",
        escape(line.name),
        MISSING if tokens is None else f"{tokens:,}",
        duration(seconds),
        _value(line, "eval/loss"),
        ("not finite" if "eval/perplexity" in line.values and perplexity(line) is None else "")
        or significant(perplexity(line)) + badge,
    ]
    return ("best" if is_best else ""), cells + [_value(line, key) for key in others]


def _value(line: Evaluation, key: str) -> str:
    value = line.values.get(key)
    return "not finite" if value is not None and np.isinf(value) else significant(value)


def samples_section(record: RunRecord) -> str:
    """Text that the model wrote, newest first."""
    kept = spread(len(record.samples), _SAMPLES)
    blocks = []
    for place in reversed(kept):
        sample = record.samples[place]
        step = "" if sample.step is None else f"step {sample.step:,}"
        text = sample.text.removeprefix(sample.prompt)
        if len(text) > _SAMPLE_CHARACTERS:
            text = f"{text[:_SAMPLE_CHARACTERS]} …"
        blocks.append(
            f'<figure class="sample"><figcaption>{step}</figcaption>'
            f"<blockquote><b>{escape(sample.prompt)}</b>{escape(text)}</blockquote></figure>"
        )
    body = f'<div class="samples">{"".join(blocks)}</div>' if blocks else ""
    return _section("Text samples", body, _left_out(len(record.samples), kept))


def events_section(record: RunRecord, axes: RunAxes) -> str:
    """The run's life, event by event; checkpoints saved one after the other share a row."""
    groups = [list(group) for _, group in groupby(record.events, key=_routine)]
    groups = [
        part for group in groups for part in ([group] if _routine(group[0]) is not None else [[one] for one in group])
    ]
    kept = spread(len(groups), _ROWS)
    rows = [("", _events_row(groups[place], axes)) for place in kept]
    head = ["Time", "After", "Event", "Step", "Attempt", "Details"]
    return _section("Events", _table(head, rows, numeric={1, 3, 4}), _left_out(len(groups), kept))


def _routine(event: Event) -> int | None:
    """The same for neighbours that share a row: the attempt of a routine event; None for the others."""
    return (event.attempt or 0) if tone(event) == "tick" else None


def _events_row(group: list[Event], axes: RunAxes) -> list[str]:
    first, last = group[0], group[-1]
    times = f" × {len(group):,}" if len(group) > 1 else ""
    steps = [f"{step:,}" for step in dict.fromkeys((first.step, last.step)) if step is not None]
    return [
        moment(last.time_unix_seconds),
        duration(axes.since_begin(last.time_unix_seconds)),
        f'<span class="badge {tone(first)}">{escape(title(first))}{times}</span>',
        " to ".join(steps),
        "" if first.attempt is None else str(first.attempt),
        ("the last: " if times else "") + escape(describe(last)),
    ]


def checkpoints_section(record: RunRecord) -> str:
    """The published checkpoints."""
    kept = spread(len(record.checkpoints), _ROWS)
    rows = [("", _checkpoint_row(record.checkpoints[place])) for place in kept]
    head = ["Step", "Directory", "Written by", "Files", "Size", "Next sequence"]
    return _section("Checkpoints", _table(head, rows, numeric={0, 3, 4, 5}), _left_out(len(record.checkpoints), kept))


def _checkpoint_row(checkpoint: Checkpoint) -> list[str]:
    manifest = checkpoint.manifest
    run = manifest.get("run")
    facts = {**manifest, **run} if isinstance(run, dict) else manifest
    position = whole(facts.get("data_position"))
    return [
        MISSING if checkpoint.step is None else f"{checkpoint.step:,}",
        f"<code>{escape(checkpoint.directory)}</code>",
        escape(topology_words(topology_of(facts))) or MISSING,
        MISSING if checkpoint.files is None else f"{checkpoint.files:,}",
        byte_size(checkpoint.size_bytes),
        MISSING if position is None else f"{position:,}",
    ]


def configuration_section(record: RunRecord) -> str:
    """The resolved config, folded."""
    if not record.config_yaml:
        return ""
    lines = "\n".join(_yaml_line(line) for line in record.config_yaml.splitlines())
    return _section("Configuration", f"<details><summary>Resolved config.yaml</summary><pre>{lines}</pre></details>")


def _yaml_line(line: str) -> str:
    found = _YAML_LINE.fullmatch(line)
    if found is None:
        return escape(line)
    indent, key, colon, value = found.groups()
    return f'{escape(indent)}<span class="key">{escape(key)}</span>{colon}{escape(value)}'


def facts_section(record: RunRecord) -> str:
    """Whatever run.json says, each of its nested objects a table of its own."""
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in record.facts.items():
        if isinstance(value, dict):
            groups[key] = value
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            groups |= {f"{key} {place}": item for place, item in enumerate(value, start=1) if isinstance(item, dict)}
        else:
            groups["run"][key] = value
    tables = [_facts_table(name, facts) for name, facts in groups.items() if facts]
    body = f'<div class="facts">{"".join(tables)}</div>' if tables else ""
    return _section("Run and environment", body)


def _facts_table(name: str, facts: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(label(key))}</th><td>{escape(fact(key, value))}</td></tr>'
        for key, value in flat(facts)
    )
    return f"<table><caption>{escape(name.replace('_', ' '))}</caption><tbody>{rows}</tbody></table>"


def _section(name: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    anchor = name.lower().replace(" ", "-")
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{name}</h2>{body}{note}</section>'
    )


def _table(head: list[str], rows: list[tuple[str, list[str]]], *, numeric: set[int]) -> str:
    """A table of cells that are HTML already; a row is its class and its cells. Empty without rows."""
    if not rows:
        return ""
    sides = ['class="numeric"' if column in numeric else "" for column in range(len(head))]
    header = "".join(f'<th scope="col" {side}>{escape(name)}</th>' for name, side in zip(head, sides, strict=True))
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f"<td {side}>{cell}</td>" for cell, side in zip(cells, sides, strict=True))
        + "</tr>"
        for kind, cells in rows
    )
    # Focusable, so that the keyboard can scroll a table that is wider than the screen.
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Table, scrolls sideways">'
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _left_out(count: int, kept: list[int]) -> str:
    missing = count - len(kept)
    return (
        f'<p class="left-out">{missing:,} of {count:,} are left out here; the run directory has them all.</p>'
        if missing
        else ""
    )
