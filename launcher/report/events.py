"""Events in words: what happened, how grave it is, where the run stands after it."""

from __future__ import annotations

import json
from typing import Any, Literal

from launcher.report.record import Event
from launcher.report.units import byte_size, duration, moment, plural

Tone = Literal["tick", "calm", "good", "warn", "bad"]
Status = Literal["finished", "running", "recovering", "preempted", "stopped", "failed", "unknown"]

_TONES: dict[str, Tone] = {
    "started": "calm",
    "resumed": "calm",
    "stopped": "calm",
    "checkpoint_saved": "tick",
    "finished": "good",
    "checkpoint_rejected": "warn",
    "rolled_back": "warn",
    "samples_skipped": "warn",
    "preempted": "warn",
    "worker_lost": "bad",
    "failed": "bad",
}
_STATUS_AFTER: dict[str, Status] = {
    "started": "running",
    "resumed": "running",
    "rolled_back": "running",
    "worker_lost": "recovering",
    "preempted": "preempted",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
}
_TOPOLOGY_KEYS = ("topology", "layout")  # a layout is a topology with what else bit-equality depends on
_IDENTITIES = ("seed", "port", "pid", "id", "year", "schema_version")  # names written in digits, not amounts
_LONGEST_VALUE = 400  # characters; a traceback belongs in postmortem.md


def tone(event: Event) -> Tone:
    """How an event is drawn; one that this version does not know is calm."""
    return _TONES.get(event.name, "calm")


def title(event: Event) -> str:
    """The event's name as words."""
    return event.name.replace("_", " ")


def status(events: list[Event]) -> Status:
    """Where the run stands after its last event that says so."""
    known = [_STATUS_AFTER[event.name] for event in events if event.name in _STATUS_AFTER]
    return known[-1] if known else "unknown"


def describe(event: Event) -> str:
    """The event's details in one line."""
    parts = []
    details = dict(event.details)
    before = details.pop("topology_before", None)
    after = details.pop("topology_after", None) or topology_of(details)
    details = {key: value for key, value in details.items() if key not in _TOPOLOGY_KEYS}
    if isinstance(after, dict) and after:
        was = topology_words(before) if isinstance(before, dict) else ""
        now = topology_words(after)
        parts.append(now if was in ("", now) else f"{was} → {now}")
    elif after:
        parts.append(f"topology {after}" if before in (None, after) else f"topology {before} → {after}")
    for key, value in flat(details):
        parts.append(f"{label(key)} {fact(key, value)}")
    return " · ".join(parts)


def flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (dotted key, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(place): item for place, item in enumerate(value, start=1)}
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def label(key: str) -> str:
    """A key as words; a unit that `fact` writes behind the figure is not said twice."""
    for unit in ("_unix_seconds", "_seconds", "_bytes"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def fact(key: str, value: Any) -> str:
    """A fact of unknown meaning, with the unit that its name carries."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _figure(key, value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(str(item) for item in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} …"


def _figure(key: str, value: int | float) -> str:
    if key.endswith("_unix_seconds"):
        return moment(value)
    if key.endswith("bytes"):
        return byte_size(value)
    if key.endswith("seconds"):
        return duration(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    name = key.rpartition(".")[2]
    return str(value) if name in _IDENTITIES else f"{value:,}"


def topology_of(facts: dict[str, Any]) -> dict[str, Any]:
    """The topology among facts, whichever name it has; empty where there is none."""
    return next((facts[key] for key in _TOPOLOGY_KEYS if isinstance(facts.get(key), dict)), {})


def topology_words(facts: dict[str, Any]) -> str:
    """A topology as people say it: `4 workers, ZeRO 2, precision bf16`."""
    named = dict(facts)
    parts = []
    world_size, zero_stage = named.pop("world_size", None), named.pop("zero_stage", None)
    if isinstance(world_size, int):
        parts.append(plural(world_size, "worker"))
    if zero_stage is not None:
        parts.append(f"ZeRO {zero_stage}")
    parts += [f"{label(key)} {fact(key, value)}" for key, value in flat(named)]
    return ", ".join(parts)
