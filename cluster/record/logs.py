"""The run's record. All else is a view of it.

Rank 0 writes metrics.jsonl and samples.jsonl, which go back to a checkpoint with the training; the driver writes
events.jsonl, which only grows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from data_pipeline.publish import sync_file, write_atomically

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"
DISCARDED_NAME = "discarded.jsonl"
EVENTS_NAME = "events.jsonl"

DETERMINISTIC_TRAIN_FIELDS = ("step", "train/loss", "train/grad_norm", "train/learning_rate", "train/tokens")
DETERMINISTIC_EVAL_FIELDS = ("step", "name", "eval/loss", "eval/perplexity")
DETERMINISTIC_SAMPLE_FIELDS = ("step", "name", "prompt", "text")
_DETERMINISTIC_FIELDS = {
    "train": DETERMINISTIC_TRAIN_FIELDS,
    "eval": DETERMINISTIC_EVAL_FIELDS,
    "sample": DETERMINISTIC_SAMPLE_FIELDS,
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole JSON objects of a log; a torn last line is left out."""
    return LogTail(path).read()


class LogTail:
    """Reads what was added to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._lines = 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines; half a line is left for the next time.

        Raises:
            StorageError: A line is not JSON.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        rows = []
        for number, line in enumerate(whole.splitlines(), start=self._lines + 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise StorageError(
                    f"{self._path}, line {number} is not JSON ({error}): it was edited or damaged. Restore the file "
                    "from a copy, or remove the line."
                ) from error
        self._position += len(whole)
        self._lines += len(rows)
        return rows


def perplexity(loss: float) -> float:
    """exp of a mean cross entropy in nats; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def jsonable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with every non-finite number replaced by null and named in `nonfinite`."""
    nonfinite = [key for key, value in fields.items() if isinstance(value, float) and not math.isfinite(value)]
    row = {key: None if key in nonfinite else value for key, value in fields.items()}
    return {**row, "nonfinite": nonfinite} if nonfinite else row


def deterministic_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a line of metrics or samples that does not depend on when or how fast it was computed."""
    return {"kind": row["kind"], **{key: row.get(key) for key in _DETERMINISTIC_FIELDS[row["kind"]]}}


class StepLog:
    """A log by step, continued after a checkpoint: (kind, name, step) is unique over the run's whole life."""

    def __init__(self, path: Path, *, attempt: int, after_step: int, clock: Callable[[], float]) -> None:
        """Open the log, first rewriting it without a torn tail and without steps after the checkpoint.

        Args:
            path: The log, in the run's directory.
            attempt: This attempt's number, put on every line.
            after_step: Step of the checkpoint that training continues from; later lines move to discarded.jsonl.
            clock: Unix seconds.
        """
        self._path = path
        self._attempt = attempt
        self._clock = clock
        rows = read_lines(self._path)
        kept = [row for row in rows if row["step"] <= after_step]
        self._discard(path.with_name(DISCARDED_NAME), [row for row in rows if row["step"] > after_step])
        write_atomically(self._path, b"".join(_line(row) for row in kept))
        self._known = {_identity(row) for row in kept}
        self._lock = threading.Lock()  # the checkpoint thread makes lines durable
        self._file = self._path.open("ab", buffering=0)
        self._pending = b""

    def write(self, kind: str, step: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line.

        Returns:
            The line as it stands in the file.

        Raises:
            ValueError: There is a line of this kind, name and step already.
        """
        row = jsonable(
            {"kind": kind, "step": step, "time_unix_seconds": self._clock(), "attempt": self._attempt, **fields}
        )
        identity = _identity(row)
        if identity in self._known:
            raise ValueError(f"{self._path} has a line for {identity} already: each step is logged once.")
        self._known.add(identity)
        with self._lock:
            self._pending += _line(row)
            try:
                self._flush()
            except OSError as error:  # training goes on; no checkpoint is published before the lines are there
                logger.warning("%s cannot be written (%s): its lines wait in memory", self._path, error.strerror)
        return row

    def sync(self) -> None:
        """Make all lines durable; a checkpoint is published only after its metrics are.

        Raises:
            OSError: They cannot be written.
        """
        with self._lock:
            self._flush()
        sync_file(self._path)

    def close(self) -> None:
        """Make all lines durable and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _flush(self) -> None:
        _write_whole(self._file.fileno(), self._pending)
        self._pending = b""

    @staticmethod
    def _discard(path: Path, rows: list[dict[str, Any]]) -> None:
        """Keep lines that no longer count, each once, also when a kill makes this happen twice."""
        if rows:
            _close_torn_tail(path)
            there = {(_identity(row), row.get("attempt")) for row in read_lines(path)}
            _append(path, [row for row in rows if (_identity(row), row.get("attempt")) not in there])


class EventsLog:
    """events.jsonl of a run: append-only; a torn tail left by a killed driver is closed first."""

    def __init__(self, directory: Path, *, clock: Callable[[], float]) -> None:
        self._path = directory / EVENTS_NAME
        self._clock = clock
        _close_torn_tail(self._path)

    def write(self, event: str, **details: Any) -> dict[str, Any]:
        """Append one event durably; one that the storage does not take is logged, since it must not end a run.

        Returns:
            The event as a line.
        """
        row = jsonable({"event": event, "time_unix_seconds": self._clock(), **details})
        try:
            _append(self._path, [row])
        except OSError as error:
            logger.warning("event %s could not be written to %s: %s", event, self._path, error.strerror)
        return row

    def last(self) -> str | None:
        """Name of the newest event."""
        return next((row["event"] for row in reversed(read_lines(self._path))), None)


def _identity(row: Mapping[str, Any]) -> tuple[str | None, str | None, int]:
    return (row.get("kind"), row.get("name"), row["step"])


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("ab", buffering=0) as file:
        _write_whole(file.fileno(), b"".join(_line(row) for row in rows))
        os.fsync(file.fileno())


def _write_whole(descriptor: int, data: bytes) -> None:
    """Append all of the data or, where that fails, nothing."""
    before = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def _close_torn_tail(path: Path) -> None:
    """Remove a half-written last line, which only a killed process leaves."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomically(path, whole)
