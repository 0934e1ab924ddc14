"""A log kept in an object store, where nothing can be appended to: as parts, each put whole.

A log by step has parts `ATTEMPT-SEQUENCE.jsonl`. The first part of an attempt holds every line that is kept from the
attempts before it, so that one PUT brings the log back to a checkpoint, and readers take the parts of the highest
attempt that has a first part, and no others: a process that was superseded cannot add a line. First parts are put by
who begins an attempt, and never again. Logs that only grow are read whole, in the order of the names of their parts.

The newest part of a writer is put again, longer, until it holds enough for another to begin: a part only ever grows,
and grows no more once there is a next one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

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
_STEPS_PART_BYTES = 256 << 10
"""A part of a log by step is put again until it holds so much: a run of a month has hundreds of parts, and not one for
every 15 seconds."""
_EVENTS_PART_BYTES = 16 << 10
"""The same of events, each of which is put at once."""


class _Parts:
    """The parts of one writer, of which the newest grows.

    Args:
        place: Where the part of a sequence number lies.
        sequence: Number of the first part.
        full_bytes: What a part holds when another begins.
        whole: Content of a first part that is put as it is, and does not grow; None for none.
        readable: Called when new lines can be read.
    """

    def __init__(
        self,
        place: Callable[[int], ObjectPath],
        *,
        sequence: int,
        full_bytes: int,
        whole: bytes | None = None,
        readable: Callable[[], object] = lambda: None,
    ) -> None:
        self._place = place
        self._sequence = sequence
        self._full_bytes = full_bytes
        self._readable = readable
        self._held = b""
        """What the store has of the newest part."""
        self._in_hand = whole
        """The newest part as it is being put. Without an answer of the store it is put again as it was, and grows no
        more: the request may still be on its way, and what it brings late must cut nothing off."""
        self._pending = b""
        self._pending_lock = threading.Lock()
        self._putting = threading.Lock()

    def append(self, data: bytes) -> None:
        """Add lines, for the next `put`."""
        with self._pending_lock:
            self._pending += data

    def put(self) -> None:
        """Make all lines durable.

        Raises:
            OSError: The store does not take them; the next call tries again.
        """
        with self._putting:
            while True:
                as_it_was = self._in_hand is not None
                if self._in_hand is None:
                    with self._pending_lock:
                        new, self._pending = self._pending, b""
                    if not new:
                        return
                    self._in_hand = self._held + new
                write_atomically(self._place(self._sequence), self._in_hand)
                self._held, self._in_hand = self._in_hand, None
                if as_it_was or len(self._held) >= self._full_bytes:
                    self._held = b""
                    self._sequence += 1
                self._readable()


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
        self._parts = _Parts(
            partial(part_of, directory, attempt),
            sequence=0,
            full_bytes=_STEPS_PART_BYTES,
            whole=content,
            readable=readable,
        )
        self._ended = threading.Event()
        self._put_retried()
        self._thread = threading.Thread(target=self._work, name=f"{directory.name}-log", daemon=True)
        self._thread.start()

    def append(self, data: bytes) -> None:
        """Add lines; waits for nothing."""
        self._parts.append(data)

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
        self._parts.put()

    def _put_retried(self) -> None:
        retried(self._parts.put, f"writing {self._directory}")

    def _work(self) -> None:
        remove_older_parts(self._directory, self._attempt)
        while not self._ended.wait(PUT_SECONDS):
            try:
                self._parts.put()
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
        self._sequence = 0
        self._position = 0
        """Bytes that were read of the part of that sequence."""

    def read(self) -> bytes:
        """New lines.

        Raises:
            OSError: The store cannot give them now.
        """
        if self.attempt is None:
            return self._first_read()
        found: list[bytes] = []
        sequence, position = self._sequence, self._position
        with contextlib.suppress(FileNotFoundError):  # not there yet, or removed by a newer attempt
            while True:
                part = part_of(self._directory, self.attempt, sequence)
                data = part.read_bytes()
                complete = part_of(self._directory, self.attempt, sequence + 1).is_file()
                if complete:  # it may have grown between the two looks, and does not any more
                    data = part.read_bytes()
                found.append(data[position:])
                sequence, position = (sequence + 1, 0) if complete else (sequence, max(position, len(data)))
                if not complete:
                    break
        self._sequence, self._position = sequence, position  # an error above leaves everything to the next look
        return b"".join(found)

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
                found = _read([part_of(self._directory, newest, sequence) for sequence in whole])
            except FileNotFoundError:  # removed by a newer attempt, whose first part is there by now
                if listing == _LISTINGS - 1:
                    raise
                continue
            self.attempt = newest
            self._sequence, self._position = (len(whole) - 1, len(found[-1])) if len(whole) > 1 else (1, 0)
            return b"".join(found)
        raise AssertionError


class GrowingParts:
    """A log that only grows, written by those who hold a run one after the other, each under its own number.

    Args:
        directory: Prefix of the parts, which are named `TOKEN-SEQUENCE.jsonl`.
        token: Number of the writer.
    """

    def __init__(self, directory: ObjectPath, token: int) -> None:
        own = [sequence for writer, sequence in _numbers(directory) if writer == token]
        self._parts = _Parts(
            lambda sequence: directory / f"{token:010d}-{sequence:08d}{_SUFFIX}",
            sequence=max(own, default=-1) + 1,
            full_bytes=_EVENTS_PART_BYTES,
        )

    def append(self, line: bytes) -> None:
        """Append a line durably.

        Raises:
            OSError: The store does not take it; it goes with the next one then.
        """
        self._parts.append(line)
        self._parts.put()


class MergedTail:
    """Reads what was added to a log that only grows since the last look, in any of its parts.

    A writer that was superseded may add to its part at any time; a place is kept in each, so that this moves no other.
    """

    def __init__(self, directory: ObjectPath) -> None:
        self.where = f"{directory}/"
        self._directory = directory
        self._positions: dict[str, int] = {}
        """Bytes that were read of each part."""

    def read(self) -> bytes:
        """New lines.

        Raises:
            OSError: The store cannot give them now.
        """
        names = _names(self._directory)
        parts = dict(zip(names, _read([self._directory / name for name in names]), strict=True))
        new = b"".join(data[self._positions.get(name, 0) :] for name, data in parts.items())
        self._positions |= {name: max(len(data), self._positions.get(name, 0)) for name, data in parts.items()}
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


def _read(parts: Sequence[ObjectPath]) -> list[bytes]:
    return each_of(parts, ObjectPath.read_bytes, at=parts[0]) if parts else []
