"""Events in words: what happened, how grave it is, where the run stands after it."""

from __future__ import annotations

from typing import Literal

from launcher.report.json_facts import whole
from launcher.report.record import Event
from launcher.report.words import fact, flat, label, topology_of, topology_words, weights_words, without_topology

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
    "anomaly": "warn",
    "straggler": "warn",
    "micro_batch_halved": "warn",
    "evaluation_failed": "warn",
    "evaluation_lost": "warn",
    "evaluation_missing": "warn",
    "hang": "bad",
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
    "regrouped": "running",
    "hang": "recovering",
    "worker_lost": "recovering",
    "driver_lost": "recovering",
    "preempted": "preempted",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
}


_TITLES = {
    "hang": "hang found",
    "regrouped": "workers regrouped",
    "preempted": "node taken back",
    "micro_batch_halved": "micro-batch halved",
}
_KINDS = {
    "non_finite_loss": "loss not finite",
    "non_finite_gradients": "gradients not finite",
    "loss_spike": "loss spike",
    "preemption": "node taken back",
    "lost_node": "node lost",
    "lost_worker": "process killed",
    "out_of_memory": "out of memory",
    "hang": "hang",
    "error": "error",
}
"""Kinds of anomalies and of failures of workers."""


def tone(event: Event) -> Tone:
    """How an event is drawn; one that this version does not know is judged by the end of its name, else calm."""
    if event.name == "worker_lost" and event.details.get("kind") == "preemption":
        return "warn"  # a notice was given, and nothing is wrong
    if event.name in _TONES:
        return _TONES[event.name]
    return next((tone for ending, tone in _TONES_OF_ENDINGS.items() if event.name.endswith(ending)), "calm")


def title(event: Event) -> str:
    """The event's name as words; anomalies and lost workers with their kind."""
    name = _TITLES.get(event.name, event.name.replace("_", " "))
    if (kind := _kind(event)) is None:
        return name
    return kind if event.name == "anomaly" else f"{name}: {kind}"


def _kind(event: Event) -> str | None:
    """Of an anomaly or of what a worker was lost by, as words."""
    kind = event.details.get("kind") if event.name in ("anomaly", "worker_lost") else None
    return _KINDS.get(kind) if isinstance(kind, str) else None


def status(events: list[Event]) -> Status:
    """Where the run stands after its last event that says so."""
    known = [_STATUS_AFTER[event.name] for event in events if event.name in _STATUS_AFTER]
    return known[-1] if known else "unknown"


def describe(event: Event) -> str:
    """The event's details in one line, what the title says left out."""
    parts = []
    details = {key: value for key, value in event.details.items() if value is not None}
    if _kind(event) is not None:
        del details["kind"]
    start, stop = (whole(details.get(key)) for key in ("start", "stop"))
    if event.name == "samples_skipped" and start is not None and stop is not None:
        parts.append(f"sequences {start:,} to {stop - 1:,}")
        details = {key: value for key, value in details.items() if key not in ("start", "stop")}
    parent = details.pop("branched_from", None)
    if isinstance(parent, dict):
        parts.append(f"branch of {parent.get('name')} at step {fact('step', parent.get('step'))}")
    weights = details.pop("initialized_from", None)
    if isinstance(weights, dict):
        parts.append(weights_words(weights))
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
