"""The moments of a run at which its time begins to be spent on something else, read from its record tolerantly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal[
    "training", "data_wait", "checkpoint", "evaluation", "compilation", "start_up", "redone", "lost", "other"
]
"""What time is spent on; `cluster.record.goodput.TimeParts` says what belongs to each."""

TICK_SECONDS = 2.0**-20
"""Moments are rounded to it (a microsecond): sums of its multiples are exact, so that parts add up to the whole."""
_LATEST_SECONDS = 2.0**32  # a moment after it (the year 2106) is a damaged line
_FIELDS: dict[Part, str] = {
    "training": "time/training_seconds",
    "data_wait": "time/data_wait_seconds",
    "checkpoint": "time/checkpoint_seconds",
    "evaluation": "time/evaluation_seconds",
    "compilation": "time/compilation_seconds",
}
BEGINNINGS = ("started", "resumed")
_DEATHS = ("worker_lost", "driver_lost", "failed")
_ROLLBACK = "rolled_back"
_REGROUPED = "regrouped"
_SAVED = "checkpoint_saved"

Between = Literal["start_up", "lost", "paused"]
"""What time is while no attempt trains."""
AFTER: dict[str, tuple[Part, Between]] = {
    "stopped": ("other", "paused"),
    "finished": ("other", "paused"),
    _REGROUPED: ("other", "start_up"),
    _ROLLBACK: ("redone", "start_up"),
}
"""What the time since the last step is at the end of an attempt, as far as that does not say it by itself, and what
the time after it; other ends are deaths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A moment at which something ended or began."""

    time: float
    name: str
    """Of the event, or `row`."""
    attempt: int | None
    stays: bool = True
    """Of a row or the end of an attempt: whether its steps are still part of the run."""
    seconds: dict[Part, float] | None = None
    """What a row, or the end of an attempt, says of the time since the row before; None where it says nothing."""
    start_up: float = 0.0


def row_marks(rows: Iterable[Mapping[str, Any]], kept_until: float) -> Iterator[Mark]:
    """The moments of train lines.

    Args:
        rows: Lines of metrics.jsonl or discarded.jsonl.
        kept_until: Last step that stays, -1 for none.
    """
    for row in rows:
        time = moment(row.get("time_unix_seconds"))
        if row.get("kind") != "train" or time is None:
            continue
        yield Mark(
            time=time,
            name="row",
            attempt=_whole(row.get("attempt")),
            stays=_is_kept(row, kept_until),
            seconds=_seconds(row),
        )


def event_marks(events: Sequence[Mapping[str, Any]], kept_until: float) -> list[Mark]:
    """The moments of events at which an attempt begins or ends.

    Args:
        events: In the order written; each has its `time_unix_seconds`.
        kept_until: Last step that stays, -1 for none.
    """
    marks = []
    for event in reversed(events):
        time, name = moment(event["time_unix_seconds"]), event.get("event")
        if time is None or name not in (*BEGINNINGS, *_DEATHS, *AFTER):
            continue
        start_up = moment(event.get("start_up_seconds")) or 0.0
        marks.append(
            Mark(
                time=time,
                name=name,
                attempt=_whole(event.get("attempt")),
                stays=_is_kept(event, kept_until),
                seconds=_seconds(event) if name in AFTER else None,
                start_up=max(start_up, 0.0),
            )
        )
        if name in BEGINNINGS:  # what attempts before it made after this step is made again
            step = _number(event.get("step"))
            kept_until = kept_until if step is None else min(kept_until, step)
    return marks[::-1]


def kept_until(events: list[Mapping[str, Any]]) -> float:
    """The last step that is safe: what a dead run made after its newest checkpoint is to be redone."""
    saved, dead = 0.0, False
    for event in events:
        name = event.get("event")
        if name in (_SAVED, _ROLLBACK):
            saved = _number(event.get("step" if name == _SAVED else "to_step")) or 0.0
        elif name in (*BEGINNINGS, *_DEATHS, *AFTER):
            dead = name in _DEATHS
    return saved if dead else math.inf


def moment(value: object) -> float | None:
    """A time or a length of time in seconds, rounded to a tick; None where it is neither."""
    found = _number(value)
    return None if found is None or abs(found) > _LATEST_SECONDS else round(found / TICK_SECONDS) * TICK_SECONDS


def _is_kept(line: Mapping[str, Any], kept_until: float) -> bool:
    step = _number(line.get("step"))
    return step is None or step <= kept_until


def _seconds(line: Mapping[str, Any]) -> dict[Part, float] | None:
    said = {part: moment(line.get(key)) for part, key in _FIELDS.items()}
    return {part: max(found, 0.0) for part, found in said.items() if found is not None} or None


def _whole(value: object) -> int | None:
    found = _number(value)
    return None if found is None else int(found)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
