"""Events in words: what happened, how grave it is, where the run stands after it."""

from __future__ import annotations

from typing import Literal

from launcher.report.record import Event
from launcher.report.words import fact, flat, label, topology_of, topology_words, without_topology

Tone = Literal["tick", "calm", "good", "warn", "bad"]
Status = Literal["finished", "running", "recovering", "preempted", "stopped", "failed", "unknown"]

_TONES: dict[str, Tone] = {
    "started": "calm",
    "resumed": "calm",
    "stopped": "calm",
    "checkpoint_saved": "tick",
    "finished": "good",
    "rolled_back": "warn",
    "preempted": "warn",
    "failed": "bad",
}
_TONES_OF_ENDINGS: dict[str, Tone] = {
    "_lost": "bad",
    "_failed": "bad",
    "_rejected": "warn",
    "_skipped": "warn",
    "_saved": "tick",
}
_STATUS_AFTER: dict[str, Status] = {
    "started": "running",
    "resumed": "running",
    "rolled_back": "running",
    "worker_lost": "recovering",
    "driver_lost": "recovering",
    "preempted": "preempted",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
}


def tone(event: Event) -> Tone:
    """How an event is drawn; one that this version does not know is judged by the end of its name, else calm."""
    if event.name in _TONES:
        return _TONES[event.name]
    return next((tone for ending, tone in _TONES_OF_ENDINGS.items() if event.name.endswith(ending)), "calm")


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
    if isinstance(after, dict) and after:
        was = topology_words(before) if isinstance(before, dict) else ""
        now = topology_words(after)
        parts.append(now if was in ("", now) else f"{was} → {now}")
    elif after:
        parts.append(f"topology {after}" if before in (None, after) else f"topology {before} → {after}")
    for key, value in flat(without_topology(details)):
        parts.append(f"{label(key)} {fact(key, value)}")
    return " · ".join(parts)
