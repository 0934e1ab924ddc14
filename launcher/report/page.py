"""The page: template, style, script and data made one file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cluster.storage.operations import StoragePath, write_atomically
from launcher.report.comparison import cautions, comparison_table
from launcher.report.configuration import configuration_section
from launcher.report.curves import page_data
from launcher.report.events import status
from launcher.report.facts import facts_section
from launcher.report.goodput import goodput_section
from launcher.report.headline import FORMULAS, Card, headline
from launcher.report.json_facts import finite, whole
from launcher.report.markup import swatch
from launcher.report.measures import measures_section
from launcher.report.record import RunRecord, read_record
from launcher.report.runs import ReportedRun, memory_unit, reported_runs
from launcher.report.samples import samples_section
from launcher.report.sections import checkpoints_section, evaluation_section, events_section
from launcher.report.units import moment, short_count
from launcher.report.words import topology_of, topology_words

_STYLES = ("uPlot.min.css", "page.css", "parts.css", "measures.css")
_SCRIPTS = ("uPlot.iife.min.js", "figures.js", "curves.js", "marks.js", "chart.js", "page.js")


def write_report(*run_directories: StoragePath, output: StoragePath | None = None) -> StoragePath:
    """Write the report of a run, or of several compared, whole or not at all.

    Args:
        run_directories: STORAGE/NAME of each run, at any moment of its life.
        output: The HTML file; report.html in the directory of the one run where None.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: there is no such run directory.
        ValueError: no run was given, or several and no output.
    """
    if output is None:
        if len(run_directories) != 1:
            raise ValueError(f"{len(run_directories)} runs have no directory in common: name the output file.")
        output = run_directories[0] / "report.html"
    page = build_page([read_record(directory) for directory in run_directories])
    if isinstance(output, Path):
        output.parent.mkdir(parents=True, exist_ok=True)
        _publish(page, output)
    else:
        write_atomically(output, page.encode("utf-8", errors="replace"))
    return output


def build_page(records: Sequence[RunRecord]) -> str:
    """The HTML of a report, of one run or of several.

    Raises:
        ValueError: no run was given.
    """
    if not records:
        raise ValueError("A report needs at least one run.")
    runs = reported_runs(records)
    data = page_data(runs)
    one = runs[0] if len(runs) == 1 else None
    return Template(_asset("page.html")).substitute(
        kind="Longhaul run" if one else "Longhaul comparison",
        name=escape(", ".join(run.label for run in runs)),
        title=escape(one.label if one else f"{len(runs)} runs"),
        status=_status(one) if one else "",
        subtitle=escape(_subtitle(one) if one else _span(runs)),
        asides=_asides(runs),
        headline=_headline(runs),
        chips="" if one else _chips(runs),
        hint="" if one else ", a run's name above to hide the run",
        empty="" if data["charts"] else '<p class="empty">No step has been logged yet.</p>',
        sampling=_sampling(runs, data["buckets"]),
        sections=_sections(runs),
        formulas=escape(FORMULAS),
        written=moment(datetime.now(UTC).timestamp()),
        notice=_asset("NOTICE"),
        style="\n".join(_asset(name) for name in _STYLES),
        script="\n".join(_asset(name) for name in _SCRIPTS),
        data=_inert_json(data),
    )


def _sections(runs: list[ReportedRun]) -> str:
    if len(runs) == 1:
        order = (measures_section, evaluation_section, samples_section, goodput_section, events_section)
        return "".join(part(runs) for part in (*order, checkpoints_section, configuration_section, facts_section))
    # Between runs the first question is what was done differently.
    order = (configuration_section, measures_section, evaluation_section, samples_section, goodput_section)
    return "".join(part(runs) for part in (*order, events_section, checkpoints_section, facts_section))


def _headline(runs: list[ReportedRun]) -> str:
    unit = memory_unit(runs)
    figures = [headline(run, unit) for run in runs]
    return _cards(figures[0]) if len(runs) == 1 else comparison_table(runs, figures)


def _cards(figures: list[Card]) -> str:
    cards = "".join(
        f'<div class="card"><dt>{escape(card.label)}</dt>'
        f'<dd><span class="figure">{escape(card.value)}</span> <span class="unit">{escape(card.unit)}</span>'
        f'<p class="note">{escape(card.note)}</p></dd></div>'
        for card in figures
    )
    return f'<dl class="cards" aria-label="Headline figures">{cards}</dl>'


def _asides(runs: list[ReportedRun]) -> str:
    """What keeps figures from being compared, and what could not be read."""
    told = cautions(runs)
    for run in runs:
        told += [text if len(runs) == 1 else f"{run.label}: {text}" for text in run.record.complaints]
    if not told:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in told)
    return f'<aside class="complaints" aria-label="To be known first"><ul>{items}</ul></aside>'


def _status(run: ReportedRun) -> str:
    state = status(run.record.events)
    return f'<p class="status {state}"><span class="dot" aria-hidden="true"></span>{state}</p>'


def _span(runs: list[ReportedRun]) -> str:
    """When several runs were made."""
    begins = [run.axes.begin_unix_seconds for run in runs if run.axes.begin_unix_seconds is not None]
    ends = [run.axes.end_unix_seconds for run in runs if run.axes.end_unix_seconds is not None]
    return f"first begun {moment(min(begins))} · last record {moment(max(ends))}" if begins and ends else ""


def _chips(runs: list[ReportedRun]) -> str:
    """A switch for each run's curves and events."""
    return "".join(
        f'<button type="button" class="chip" data-run="{run.place}" aria-pressed="true">'
        f"{swatch(run)}{escape(run.label)}</button>"
        for run in runs
    )


def _subtitle(run: ReportedRun) -> str:
    """Size of the model, what it ran on, when."""
    record, axes = run.record, run.axes
    parts = []
    parent = record.facts.get("parent")
    if isinstance(parent, dict) and (step := whole(parent.get("step"))) is not None:
        parts.append(f"branch of {parent.get('name')} at step {step:,}")
    model, environment = record.facts.get("model"), record.facts.get("environment")
    if isinstance(model, dict) and (parameters := finite(model.get("parameters"))) is not None:
        parts.append(f"{short_count(parameters)} parameters")
    topology = topology_of(record.facts)
    brief: dict[str, Any] = {key: topology[key] for key in ("world_size", "zero_stage", "precision") if key in topology}
    parts += [topology_words(brief)] if brief else []
    if isinstance(environment, dict) and environment.get("device"):
        parts.append(str(environment["device"]))
    begin = finite(record.facts.get("created_unix_seconds")) or axes.begin_unix_seconds
    if begin is not None:
        parts.append(f"begun {moment(begin)}")
    if axes.end_unix_seconds is not None:
        parts.append(f"last record {moment(axes.end_unix_seconds)}")
    return " · ".join(parts)


def _sampling(runs: list[ReportedRun], buckets: int) -> str:
    longest = max(len(run.record.train) for run in runs)
    if longest <= 2 * buckets:
        return ""
    return (
        f"{longest:,} logged steps are drawn in {buckets:,} buckets: the smallest and the largest "
        "value of each; smoothing works on their means."
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _inert_json(data: dict[str, Any]) -> str:
    """JSON that no HTML parser can take for markup, whatever strings the run put into it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _publish(page: str, output: Path) -> None:
    """Write beside the output and rename, so that a reader finds the old page or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(page)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private to its owner; a report is for sharing
        os.replace(temporary, output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
