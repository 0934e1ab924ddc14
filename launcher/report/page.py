"""The page: template, style, script and data made one file."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from launcher.report import tables
from launcher.report.axes import RunAxes
from launcher.report.curves import BUCKETS, page_data
from launcher.report.events import status, topology_of, topology_words
from launcher.report.headline import FORMULAS, headline
from launcher.report.json_facts import finite
from launcher.report.record import RunRecord, read_record
from launcher.report.units import moment, short_count

_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = ("uPlot.iife.min.js", "chart.js", "page.js")


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        run_directory: STORAGE/NAME of the run, at any moment of its life.
        output: The HTML file; report.html in the run directory where None.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: there is no such run directory.
    """
    page = build_page(read_record(run_directory))
    output = run_directory / "report.html" if output is None else output
    output.parent.mkdir(parents=True, exist_ok=True)
    _publish(page, output)
    return output


def build_page(record: RunRecord) -> str:
    """The HTML of a run's report."""
    axes = RunAxes(record)
    data = page_data(record, axes)
    return Template(_asset("page.html")).substitute(
        title=escape(record.name),
        status=status(record.events),
        subtitle=escape(_subtitle(record, axes)),
        complaints=tables.complaints(record.complaints),
        cards=tables.cards(headline(record, axes)),
        empty="" if data["charts"] else '<p class="empty">No step has been logged yet.</p>',
        sampling=_sampling(record),
        sections="".join(
            (
                tables.evaluation_section(record, axes),
                tables.samples_section(record),
                tables.events_section(record, axes),
                tables.checkpoints_section(record),
                tables.configuration_section(record),
                tables.facts_section(record),
            )
        ),
        formulas=escape(FORMULAS),
        written=moment(datetime.now(UTC).timestamp()),
        notice=_asset("NOTICE"),
        style="\n".join(_asset(name) for name in _STYLES),
        script="\n".join(_asset(name) for name in _SCRIPTS),
        data=_inert_json(data),
    )


def _subtitle(record: RunRecord, axes: RunAxes) -> str:
    """Size of the model, what it ran on, when."""
    parts = []
    model, environment = record.facts.get("model"), record.facts.get("environment")
    if isinstance(model, dict) and (parameters := finite(model.get("parameters"))) is not None:
        parts.append(f"{short_count(parameters)} parameters")
    topology = topology_of(record.facts)
    brief: dict[str, Any] = {key: topology[key] for key in ("world_size", "zero_stage") if key in topology}
    parts += [topology_words(brief)] if brief else []
    parts += [str(topology["precision"])] if topology.get("precision") else []
    if isinstance(environment, dict) and environment.get("device"):
        parts.append(str(environment["device"]))
    begin = finite(record.facts.get("created_unix_seconds")) or axes.begin_unix_seconds
    if begin is not None:
        parts.append(f"begun {moment(begin)}")
    if axes.end_unix_seconds is not None:
        parts.append(f"last record {moment(axes.end_unix_seconds)}")
    return " · ".join(parts)


def _sampling(record: RunRecord) -> str:
    if len(record.train) <= 2 * BUCKETS:
        return ""
    return (
        f"{len(record.train):,} logged steps are drawn in {BUCKETS:,} buckets: the smallest and the largest "
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
