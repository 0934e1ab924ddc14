"""A log kept in an object store, where nothing can be appended to: as parts, each put whole.

A log by step has parts `ATTEMPT-SEQUENCE.jsonl`. The first part of an attempt holds every line that is kept from the
attempts before it, so that one PUT brings the log back to a checkpoint, and readers take the parts of the highest
attempt that has a first part, and no others: a process that was superseded cannot add a line. Logs that only grow are
read whole, in the order of the names of their parts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from cluster.errors import RunBusyError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import each_of, list_names, remove_files, write_atomically
from cluster.storage.retry import retried

logger = logging.getLogger(__name__)

PUT_SECONDS = 15.0
"""How long a line waits at most until it is put; a checkpoint waits for none."""
_SUFFIX = ".jsonl"
_LISTINGS = 10
"""Times that parts are listed anew because a newer attempt took their place between listing and reading."""
_LINES_PER_PART = 64
"""Of events: a part with fewer is put again with the next line."""


class PartsLog:
    """Lines of one attempt, put by a thread now and then, and whenever they must be durable.

    Args:
        directory: Prefix of the parts.
        attempt: Number of the attempt, which no other has.
        content: All lines that are kept, for the first part.
        readable: Called when new lines can be read.

    Raises:
        OSError: The first part cannot be put.
    """

    def __init__(
        self, directory: ObjectPath, *, attempt: int, content: bytes, readable: Callable[[], object] = lambda: None
    ) -> None:
        self._directory = directory
        self._attempt = attempt
        self._readable = readable
        self._sequence = 0
        self._in_hand: bytes | None = content
        """The part that is being put; a reader may have seen it even where the store gave no answer, so that it is
        put again as it was."""
        self._pending = b""
        self._pending_lock = threading.Lock()
        self._putting = threading.Lock()
        self._ended = threading.Event()
        self._put_retried()
        self._thread = threading.Thread(target=self._work, name=f"{directory.name}-log", daemon=True)
        self._thread.start()

    def append(self, data: bytes) -> None:
        """Add lines; waits for nothing."""
        with self._pending_lock:
            self._pending += data

    def sync(self) -> None:
        """Make all lines durable.

        Raises:
            OSError: The store does not take them, however often it is asked.
        """
        self._put_retried()

    def close(self) -> None:
        """Make all lines durable and end the thread; a store that does not answer is not waited for any longer."""
        self._ended.set()
        self._thread.join()
        self._put()

    def _put_retried(self) -> None:
        retried(self._put, f"writing {self._directory}")

    def _put(self) -> None:
        with self._putting:
            while True:
                if self._in_hand is None:
                    with self._pending_lock:
                        self._in_hand, self._pending = self._pending or None, b""
                    if self._in_hand is None:
                        return
                write_atomically(part_of(self._directory, self._attempt, self._sequence), self._in_hand)
                self._in_hand = None
                self._sequence += 1
                self._readable()

    def _work(self) -> None:
        remove_older_parts(self._directory, self._attempt)
        while not self._ended.wait(PUT_SECONDS):
            try:
                self._put()
            except OSError as error:  # training goes on; no checkpoint is published before the lines are there
                logger.warning(
                    "%s cannot be written (%s): its lines wait in memory", self._directory, error.strerror or error
                )


class PartsTail:
    """Reads what was added to a log by step since the last look; it stays with the attempt that it found first."""

    def __init__(self, directory: ObjectPath) -> None:
        self.where = f"{directory}/"
        self.attempt: int | None = None
        """Whose parts are read; None before there are any."""
        self._directory = directory
        self._next = 0

    def read(self) -> bytes:
        """New lines.

        Raises:
            OSError: The store cannot give them now.
        """
        if self.attempt is None:
            return self._first_read()
        found = []
        while True:
            try:
                found.append(part_of(self._directory, self.attempt, self._next).read_bytes())
            except FileNotFoundError:
                return b"".join(found)
            self._next += 1

    def _first_read(self) -> bytes:
        for listing in range(_LISTINGS):
            numbers = _numbers(self._directory)
            begun = [attempt for attempt, sequence in numbers if sequence == 0]
            if not begun:
                return b""
            newest = max(begun)
            sequences = sorted(sequence for attempt, sequence in numbers if attempt == newest)
            whole = [sequence for place, sequence in enumerate(sequences) if place == sequence]
            try:
                data = _read([part_of(self._directory, newest, sequence) for sequence in whole])
            except FileNotFoundError:  # removed by a newer attempt, whose first part is there by now
                if listing == _LISTINGS - 1:
                    raise
                continue
            self.attempt, self._next = newest, len(whole)
            return data
        raise AssertionError


class GrowingParts:
    """A log that only grows, written by those who hold a run one after the other, each under its own number.

    Args:
        directory: Prefix of the parts, which are named `TOKEN-SEQUENCE.jsonl`.
        token: Number of the writer.
    """

    def __init__(self, directory: ObjectPath, token: int) -> None:
        self._directory = directory
        self._token = token
        own = [sequence for writer, sequence in _numbers(directory) if writer == token]
        self._sequence = max(own, default=-1) + 1
        self._lines: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Append a line durably.

        Raises:
            OSError: The store does not take it; it goes with the next one then.
        """
        self._lines.append(line)
        write_atomically(self._directory / f"{self._token:010d}-{self._sequence:08d}{_SUFFIX}", b"".join(self._lines))
        if len(self._lines) >= _LINES_PER_PART:
            self._lines = []
            self._sequence += 1


class MergedTail:
    """Reads what was added to a log that only grows since the last look."""

    def __init__(self, directory: ObjectPath) -> None:
        self.where = f"{directory}/"
        self._directory = directory
        self._position = 0

    def read(self) -> bytes:
        """New lines.

        Raises:
            OSError: The store cannot give them now.
        """
        whole = _read([self._directory / name for name in _names(self._directory)])
        new = whole[self._position :]
        self._position = len(whole)
        return new


def check_newest(directory: ObjectPath, attempt: int, predecessor: int | None) -> None:
    """Make sure that the lines that are read belong to an attempt before this one.

    Raises:
        RunBusyError: A later attempt writes the log already.
    """
    if predecessor is not None and predecessor >= attempt:
        raise RunBusyError(
            f"{directory} is written by attempt {predecessor} already: attempt {attempt} was superseded, and "
            "changes nothing any more."
        )


def part_of(directory: ObjectPath, attempt: int, sequence: int) -> ObjectPath:
    """Name of a part of a log by step."""
    return directory / f"{attempt:05d}-{sequence:08d}{_SUFFIX}"


def remove_older_parts(directory: ObjectPath, attempt: int) -> None:
    """Remove the parts of the attempts before this one, which nobody reads any more; what cannot be removed stays."""
    try:
        remove_files(part_of(directory, *numbers) for numbers in _numbers(directory) if numbers[0] < attempt)
    except OSError as error:
        logger.warning("old parts of %s could not be removed: %s", directory, error.strerror or error)


def _names(directory: ObjectPath) -> list[str]:
    try:
        return [name for name in list_names(directory) if name.endswith(_SUFFIX)]
    except FileNotFoundError:
        return []


def _numbers(directory: ObjectPath) -> list[tuple[int, int]]:
    """Writer and sequence of each part."""
    pairs = [name.removesuffix(_SUFFIX).split("-") for name in _names(directory)]
    return [(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2 and all(each.isdigit() for each in pair)]


def _read(parts: Sequence[ObjectPath]) -> bytes:
    return b"".join(each_of(parts, ObjectPath.read_bytes, at=parts[0])) if parts else b""
