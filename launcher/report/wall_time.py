"""The wall time of a run, divided as `cluster.record.goodput` does it, from the record as the report reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cluster.record.goodput import Goodput, creation, measure_goodput
from launcher.report.metrics import TrainLog
from launcher.report.record import RunRecord

_GROUPS = 20_000  # of neighbouring lines of a long log, which are summed


def run_goodput(record: RunRecord) -> Goodput:
    """The wall time of a run, divided."""
    events = [
        {
            "event": event.name,
            "time_unix_seconds": event.time_unix_seconds,
            "step": event.step,
            "attempt": event.attempt,
            **event.details,
        }
        for event in record.events
    ]
    return measure_goodput(_lines(record.train), record.discarded, events, created_unix_seconds=creation(record.facts))


def _lines(train: TrainLog) -> Iterator[dict[str, Any]]:
    """The train lines as far as time is concerned; neighbours of one attempt are summed where there are very many."""
    if not len(train):
        return
    every = -(-len(train) // _GROUPS)
    place = np.arange(len(train))
    changes = np.append(True, train.attempt[1:] != train.attempt[:-1])
    starts = np.flatnonzero(changes | (place % every == 0))
    ends = np.append(starts[1:], len(train)) - 1
    columns = {
        "time_unix_seconds": train.time_unix_seconds[ends],
        "step": train.step[ends],
        "attempt": train.attempt[ends],
    }
    for key in train.values:
        if key.startswith("time/"):
            values = train.values[key]
            known = np.isfinite(values)
            sums = np.add.reduceat(np.where(known, values, 0.0), starts)
            columns[key] = np.where(np.logical_or.reduceat(known, starts), sums, np.nan)
    for line in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield {"kind": "train", **dict(zip(columns, line, strict=True))}
