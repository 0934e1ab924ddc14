"""The run's record. All else is a view of it.

Rank 0 writes metrics.jsonl and samples.jsonl, which go back to a checkpoint with the training; the driver writes
events.jsonl, which only grows. In a file system each is a file of that name, in an object store the parts below
`metrics/`, `samples/`, `events/`; a path such as RUN/metrics.jsonl means either.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import StorageError
from cluster.record.file_log import FileLog, FileTail, append_durably, close_torn_tail
from cluster.record.parts_log import GrowingParts, MergedTail, PartsLog, PartsTail, check_newest
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, write_atomically
from cluster.storage.retry import retried

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


class Lines(Protocol):
    """A log that lines are appended to."""

    def append(self, data: bytes, /) -> None:
        """Add lines without waiting until they are durable."""
        ...

    def sync(self) -> None:
        """Make all lines durable; raises `OSError` where that cannot be."""
        ...

    def close(self) -> None:
        """Make all lines durable, and end."""
        ...


def read_lines(path: StoragePath) -> list[dict[str, Any]]:
    """Whole JSON objects of a log; a torn last line is left out."""
    return LogTail(path).read()


def read_raw(path: StoragePath) -> bytes:
    """A log as text, whole lines only; empty where there is none."""
    return _tail(path).read()


def has_log(path: StoragePath) -> bool:
    """Whether a log was begun."""
    return _parts_of(path).is_dir() if isinstance(path, ObjectPath) else path.is_file()


class LogTail:
    """Reads what was added to a log since the last look."""

    def __init__(self, path: StoragePath) -> None:
        self._source = _tail(path)
        self._lines = 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines; half a line is left for the next time.

        Raises:
            StorageError: A line is not JSON.
        """
        rows = []
        for number, line in enumerate(self._source.read().splitlines(), start=self._lines + 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise StorageError(
                    f"{self._source.where}, line {number} is not JSON ({error}): it was edited or damaged. Restore the "
                    "file from a copy, or remove the line."
                ) from error
        self._lines += len(rows)
        return rows

    @property
    def attempt(self) -> int | None:
        """In an object store, the attempt whose parts were read; None elsewhere."""
        return self._source.attempt if isinstance(self._source, PartsTail) else None


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
    fields = {"kind": row["kind"], **{key: row.get(key) for key in _DETERMINISTIC_FIELDS[row["kind"]]}}
    return {**fields, **{key: value for key, value in row.items() if key.startswith("eval/")}}


class StepLog:
    """A log by step, continued after a checkpoint: (kind, name, step) is unique over the run's whole life."""

    def __init__(
        self,
        path: StoragePath,
        *,
        attempt: int,
        after_step: int,
        clock: Callable[[], float],
        readable: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the log, first bringing it back to the checkpoint: without a torn tail and without later steps.

        Args:
            path: The log, in the run's directory.
            attempt: This attempt's number, put on every line.
            after_step: Step of the checkpoint that training continues from; later lines move to discarded.jsonl.
            clock: Unix seconds.
            readable: Called when new lines can be read, in any thread.

        Raises:
            RunBusyError: A later attempt writes the log.
            OSError: The log cannot be read or written, however often it is tried.
        """
        self._path = path
        self._attempt = attempt
        self._clock = clock
        tail = LogTail(path)
        rows = retried(tail.read, f"reading {path}")
        kept = [row for row in rows if row["step"] <= after_step]
        undone = [row for row in rows if row["step"] > after_step]
        content = _text(kept)
        self._lines: Lines
        if isinstance(path, ObjectPath):
            check_newest(_parts_of(path), attempt, tail.attempt)
            if undone:  # named by what it is taken from: done again after a kill, it replaces itself
                discarded = _parts_of(path.with_name(DISCARDED_NAME))
                part = discarded / f"{tail.attempt:05d}-{path.name}"
                retried(partial(write_atomically, part, _text(undone)), f"writing {part}")
            self._lines = PartsLog(_parts_of(path), attempt=attempt, content=content, readable=readable)
        else:
            _discard(path.with_name(DISCARDED_NAME), undone)
            self._lines = FileLog(path, content, readable)
        self._known = {_identity(row) for row in kept}

    def write(self, kind: str, step: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line.

        Returns:
            The line as it stands in the log.

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
        self._lines.append(_line(row))
        return row

    def sync(self) -> None:
        """Make all lines durable; a checkpoint is published only after its metrics are.

        Raises:
            OSError: They cannot be written.
        """
        self._lines.sync()

    def close(self) -> None:
        """Make all lines durable and close the log."""
        self._lines.close()


class EventsLog:
    """events.jsonl of a run: append-only; a torn tail left by a killed driver is closed first."""

    def __init__(self, directory: StoragePath, *, clock: Callable[[], float], token: int = 0) -> None:
        """Open the log.

        Args:
            directory: The run's.
            clock: Unix seconds.
            token: Of the driver's lease; in an object store each driver writes parts under its own.
        """
        self._path = directory / EVENTS_NAME
        self._clock = clock
        self._append: Callable[[bytes], None]
        if isinstance(self._path, ObjectPath):
            self._append = GrowingParts(_parts_of(self._path), token).append
        else:
            close_torn_tail(self._path)
            self._append = partial(append_durably, self._path)

    def write(self, event: str, **details: Any) -> dict[str, Any]:
        """Append one event durably; one that the storage does not take is logged, since it must not end a run.

        Returns:
            The event as a line.
        """
        row = jsonable({"event": event, "time_unix_seconds": self._clock(), **details})
        try:
            self._append(_line(row))
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


def _text(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(_line(row) for row in rows)


def _discard(path: Path, rows: list[dict[str, Any]]) -> None:
    """Keep lines that no longer count, each once, also when a kill makes this happen twice."""
    if rows:
        close_torn_tail(path)
        there = {(_identity(row), row.get("attempt")) for row in read_lines(path)}
        append_durably(path, _text(row for row in rows if (_identity(row), row.get("attempt")) not in there))


def _parts_of(path: ObjectPath) -> ObjectPath:
    """Prefix of a log's parts."""
    return path.with_name(path.name.removesuffix(".jsonl"))


def _tail(path: StoragePath) -> FileTail | PartsTail | MergedTail:
    if not isinstance(path, ObjectPath):
        return FileTail(path)
    merged = path.name in (EVENTS_NAME, DISCARDED_NAME)
    return MergedTail(_parts_of(path)) if merged else PartsTail(_parts_of(path))
