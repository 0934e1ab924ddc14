"""What a run's wall time was spent on, across all its attempts, computed from its record alone.

    goodput = seconds of training steps that stayed / wall seconds

*Training* is what the record says of the steps that stayed: `time/training_seconds` of each train line, the seconds of
forward, backward and update since the line before, and of the event that ended an attempt, those since its last line.
A step that was made twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from cluster.record.logs import DISCARDED_NAME, EVENTS_NAME, METRICS_NAME, read_lines
from cluster.record.timeline import (
    AFTER,
    BEGINNINGS,
    TICK_SECONDS,
    Between,
    Mark,
    Part,
    event_marks,
    kept_until,
    moment,
    row_marks,
)
from cluster.run_directory import RunDirectory
from cluster.storage.operations import StoragePath


@dataclass(frozen=True, kw_only=True)
class TimeParts:
    """Seconds by what they were spent on; a moment belongs to exactly one part."""

    training: float = 0.0
    """Steps that stayed."""
    data_wait: float = 0.0
    """Waiting for batches."""
    checkpoint: float = 0.0
    """The step path standing still for a save."""
    evaluation: float = 0.0
    """Held-out loss and text samples."""
    compilation: float = 0.0
    """torch compiling what steps and evaluations compute with; part of these where an older record does not tell it."""
    start_up: float = 0.0
    """From the run's creation, a rollback or a planned change of workers to the first event of the attempt; after a
    death what that event calls `start_up_seconds`."""
    redone: float = 0.0
    """Everything between the logged steps that a death or a rollback discarded, and from the last logged step to a
    rollback. A line whose steps were discarded in part counts as a whole."""
    lost: float = 0.0
    """From the last logged step before a death (steps after it left no trace) to the first event of the next attempt:
    noticing it, waiting for nodes and, where `start_up_seconds` is not told apart, starting again."""
    other: float = 0.0
    """The rest within attempts: loading, closing, and lines that say nothing of their time."""

    @property
    def total(self) -> float:
        """All parts, without a rounding error."""
        return math.fsum(getattr(self, field.name) for field in fields(self))


PART_WORDS: dict[Part, str] = {
    "training": "training",
    "data_wait": "data wait",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
    "compilation": "compilation",
    "start_up": "start-up",
    "redone": "redone steps",
    "lost": "lost",
    "other": "other",
}
"""The parts in the order in which they are told, with what they are called."""


@dataclass(frozen=True, kw_only=True)
class AttemptTime:
    """The time of one attempt, and of the wait that its death caused."""

    attempt: int
    parts: TimeParts


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The wall time of a run, divided."""

    attempts: tuple[AttemptTime, ...]
    """In the order of their numbers."""
    paused_seconds: float
    """After `stopped` or `finished` until the next attempt: nobody asked the run to go on. Not wall time."""
    is_timed: bool
    """Whether anything that stayed says what its time was spent on; runs of before this was recorded do not."""

    @property
    def parts(self) -> TimeParts:
        """Seconds of all attempts."""
        return TimeParts(**{part: math.fsum(getattr(one.parts, part) for one in self.attempts) for part in PART_WORDS})

    @property
    def wall_seconds(self) -> float:
        """From the run's creation to its last record, without pauses; exactly the sum of the parts."""
        return self.parts.total

    @property
    def fraction(self) -> float | None:
        """Goodput, from 0 to 1; None where it cannot be known."""
        wall = self.wall_seconds
        return self.parts.training / wall if self.is_timed and wall > 0 else None


def read_goodput(run_directory: StoragePath) -> Goodput:
    """Goodput of the run in a directory, at any moment of its life.

    Raises:
        OSError: A file cannot be read.
        StorageError: A line of the record is not JSON.
    """
    record = RunDirectory(run_directory)
    return measure_goodput(
        read_lines(run_directory / METRICS_NAME),
        read_lines(run_directory / DISCARDED_NAME),
        read_lines(run_directory / EVENTS_NAME),
        created_unix_seconds=creation(record.facts()) if record.exists() else None,
    )


def creation(facts: Mapping[str, Any]) -> float | None:
    """When a run began to be prepared, by its run.json; None for a branch, which may lie untouched before it trains."""
    return None if "parent" in facts else moment(facts.get("created_unix_seconds"))


def measure_goodput(
    rows: Iterable[Mapping[str, Any]],
    discarded: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    *,
    created_unix_seconds: float | None = None,
) -> Goodput:
    """Divide a run's wall time.

    The moments of the record in the order of time cut the life of the run into intervals, each of which is divided
    among the parts, so that nothing is counted twice or not at all. What a line or an event says of its time is cut to
    the interval since the moment before; those without a moment are passed over.

    Args:
        rows: Lines of metrics.jsonl.
        discarded: Lines of discarded.jsonl.
        events: Lines of events.jsonl, in the order written.
        created_unix_seconds: When the run was created; None lets it begin with its first record.
    """
    told = [event for event in events if moment(event.get("time_unix_seconds")) is not None]
    kept = kept_until(told)
    marks = [*row_marks(rows, kept), *row_marks(discarded, -1), *event_marks(told, kept)]
    marks.sort(key=lambda mark: mark.time)
    sweep = _Sweep(begin=_begin(marks[0], moment(created_unix_seconds)) if marks else 0.0)
    for mark in marks:
        sweep.take(mark)
    return Goodput(
        attempts=tuple(
            AttemptTime(attempt=attempt, parts=TimeParts(**parts)) for attempt, parts in sorted(sweep.parts.items())
        ),
        paused_seconds=sweep.paused,
        is_timed=any(mark.seconds is not None and mark.stays for mark in marks),
    )


def goodput_line(goodput: Goodput) -> str:
    """The division in one line: `goodput 91.3 % of 2:05:12 (training 91.3 %, start-up 5.0 %, …)`."""
    wall = goodput.wall_seconds
    clock = timedelta(seconds=round(wall))
    if goodput.fraction is None:
        return f"goodput n/a of {clock}: no step of the record says what its time was spent on"
    shares = ((words, getattr(goodput.parts, part) / wall) for part, words in PART_WORDS.items())
    told = ", ".join(f"{words} {_percent(share)}" for words, share in shares if share >= 0.0005)
    return f"goodput {_percent(goodput.fraction)} of {clock} ({told})"


class _Sweep:
    """Goes from moment to moment and puts the seconds between two of them where they belong."""

    def __init__(self, begin: float) -> None:
        self.parts: dict[int, dict[Part, float]] = {}
        self.paused = 0.0
        self._now = begin
        self._between: Between | None = "start_up"
        """None while an attempt trains."""
        self._attempt: int | None = None

    def take(self, mark: Mark) -> None:
        """Account for the time up to a moment, and learn what follows it."""
        gap = mark.time - self._now
        self._now = mark.time
        if mark.name == "row":
            self._take_row(mark, gap)
        elif mark.name in BEGINNINGS:
            self._take_beginning(mark, gap)
        else:
            within, after = AFTER.get(mark.name, ("lost", "lost"))
            spent = _within(mark.seconds or {}, gap)
            self._add_between(self._between or within, gap - sum(spent.values()))
            self._add_spent(mark, spent)
            self._between = after

    def _take_row(self, mark: Mark, gap: float) -> None:
        spent = _within(mark.seconds or {}, gap)
        rest = gap - sum(spent.values())
        if self._between is not None:  # its first event is missing
            self._add_between(self._between, rest)
        self._attempt = mark.attempt or self._attempt
        if self._between is None:
            self._add("other" if mark.stays else "redone", rest)
        self._add_spent(mark, spent)
        self._between = None

    def _take_beginning(self, mark: Mark, gap: float) -> None:
        between = self._between or "lost"  # an attempt that trained has died without a word
        start_up = gap if between == "start_up" else min(gap, mark.start_up)
        self._add_between(between, gap - start_up)
        self._attempt = mark.attempt or self._attempt
        self._add("start_up", start_up)
        self._between = None

    def _add_spent(self, mark: Mark, spent: Mapping[Part, float]) -> None:
        for part, seconds in spent.items():
            self._add(part if mark.stays else "redone", seconds)

    def _add_between(self, part: Part | Between, seconds: float) -> None:
        if part == "paused":
            self.paused += seconds
        elif seconds:
            self._add(part, seconds)

    def _add(self, part: Part, seconds: float) -> None:
        parts = self.parts.setdefault(self._attempt or 1, {})
        parts[part] = parts.get(part, 0.0) + seconds


def _begin(first: Mark, created: float | None) -> float:
    return first.time - first.start_up if created is None else min(created, first.time)


def _within(seconds: Mapping[Part, float], gap: float) -> Mapping[Part, float]:
    """What a line says of its time, none of it more than the interval holds: clocks differ, and may be set."""
    said = sum(seconds.values())
    if said <= gap:
        return seconds
    return {part: math.floor(value * gap / said / TICK_SECONDS) * TICK_SECONDS for part, value in seconds.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
