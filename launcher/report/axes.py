"""The three things a curve can be drawn over: steps, tokens trained, time since the run began."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.report.record import Event, RunRecord

Floats = NDArray[np.float64]
Place = dict[str, float | int | None]


class RunAxes:
    """Places on the step, token and time axis of one run; None on an axis that the run has no figures for."""

    def __init__(self, record: RunRecord) -> None:
        train = record.train
        self._step = train.step
        self._attempt = train.attempt
        self._tokens = _known_tokens(train.step, train.column("train/tokens"))
        timed = len(train) > 0 and bool(np.isfinite(train.time_unix_seconds).all())
        # A clock that was set back must not fold the axis.
        self._time = np.maximum.accumulate(train.time_unix_seconds) if timed else np.empty(0)
        times = [*self._time[:1].tolist(), *self._time[-1:].tolist()]
        times += [event.time_unix_seconds for event in record.events if event.time_unix_seconds is not None]
        times += [line.time_unix_seconds for line in record.evaluations if line.time_unix_seconds is not None]
        self.begin_unix_seconds: float | None = min(times, default=None)
        self.end_unix_seconds: float | None = max(times, default=None)

    def names(self) -> list[str]:
        """The axes that this run can be drawn over."""
        tokens = ["tokens"] if self._tokens is not None else []
        return ["step", *tokens, *(["seconds"] if self.begin_unix_seconds is not None else [])]

    def tokens_at(self, step: float) -> int | None:
        """Tokens trained after so many steps, between logged steps in proportion."""
        if self._tokens is None:
            return None
        steps, tokens = self._tokens
        return round(float(np.interp(step, steps, tokens)))

    def seconds_at(self, step: float) -> float | None:
        """When a step was made, as seconds since the run began."""
        if not len(self._time) or self.begin_unix_seconds is None:
            return None
        return float(np.interp(step, self._step, self._time)) - self.begin_unix_seconds

    def since_begin(self, time_unix_seconds: float | None) -> float | None:
        """A moment as seconds since the run began."""
        if time_unix_seconds is None or self.begin_unix_seconds is None:
            return None
        return time_unix_seconds - self.begin_unix_seconds

    def columns(self, places: NDArray[np.int64]) -> dict[str, list[Any] | None]:
        """The three axes at these rows of the train log."""
        step = self._step[places]
        tokens = seconds = None
        if self._tokens is not None:
            tokens = np.interp(step, *self._tokens).round().astype(np.int64).tolist()
        if len(self._time) and self.begin_unix_seconds is not None:
            seconds = (self._time[places] - self.begin_unix_seconds).round(1).tolist()
        return {"step": step.astype(np.int64).tolist(), "tokens": tokens, "seconds": seconds}

    def at_step(self, step: int, time_unix_seconds: float | None = None) -> Place:
        """The place of what carries its step; its own time wins over the one the step was made at."""
        seconds = self.since_begin(time_unix_seconds)
        return _place(step, self.tokens_at(step), self.seconds_at(step) if seconds is None else seconds)

    def of_event(self, event: Event) -> Place:
        """The place of an event; without a step of its own it takes the last one logged before it."""
        step = event.step
        if step is None and event.time_unix_seconds is not None and len(self._time):
            before = int(np.searchsorted(self._time, event.time_unix_seconds, side="right")) - 1
            step = int(self._step[before]) if before >= 0 else 0
        if step is None:
            return _place(None, None, self.since_begin(event.time_unix_seconds))
        return self.at_step(step, event.time_unix_seconds)

    def attempts(self) -> list[tuple[int, Place, Place]]:
        """Attempt, first and last place of its logged steps, in the order of the steps."""
        if not len(self._attempt) or not np.isfinite(self._attempt).all():
            return []
        changes = np.flatnonzero(np.diff(self._attempt)) + 1
        bounds = [0, *changes.tolist(), len(self._attempt)]
        return [
            (int(self._attempt[first]), self._row(first), self._row(after - 1)) for first, after in pairwise(bounds)
        ]

    def _row(self, row: int) -> Place:
        when = float(self._time[row]) if len(self._time) else None
        return self.at_step(int(self._step[row]), when)


def _place(step: int | None, tokens: int | None, seconds: float | None) -> Place:
    return {"step": step, "tokens": tokens, "seconds": None if seconds is None else round(seconds, 1)}


def _known_tokens(step: Floats, tokens: Floats) -> tuple[Floats, Floats] | None:
    known = np.isfinite(tokens)
    if not known.any():
        return None
    # No step, no token: this makes the first logged interval right, too.
    return np.concatenate([[0.0], step[known]]), np.concatenate([[0.0], tokens[known]])
