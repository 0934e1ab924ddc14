"""A log kept as a file that grows."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from data_pipeline.publish import sync_file, write_atomically

logger = logging.getLogger(__name__)


class FileLog:
    """Appends lines to a file; a line is there at once for whoever reads it.

    Args:
        path: The file.
        content: What replaces the file's content first.
        readable: Called when new lines can be read.
    """

    def __init__(self, path: Path, content: bytes, readable: Callable[[], object]) -> None:
        write_atomically(path, content)
        self._path = path
        self._readable = readable
        self._lock = threading.Lock()  # the checkpoint thread makes lines durable
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def append(self, data: bytes) -> None:
        """Add lines; those that the storage does not take wait in memory for the next ones."""
        with self._lock:
            self._pending += data
            try:
                self._flush()
            except OSError as error:  # training goes on; no checkpoint is published before the lines are there
                logger.warning("%s cannot be written (%s): its lines wait in memory", self._path, error.strerror)
        self._readable()

    def sync(self) -> None:
        """Make all lines durable.

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


class FileTail:
    """Reads what was added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._position = 0

    def read(self) -> bytes:
        """New whole lines; half a line is left for the next time."""
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return whole


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file and wait until it is durable.

    Raises:
        OSError: It cannot be written; nothing of the data is there then.
    """
    with path.open("ab", buffering=0) as file:
        _write_whole(file.fileno(), data)
        os.fsync(file.fileno())


def close_torn_tail(path: Path) -> None:
    """Remove a half-written last line, which only a killed process leaves."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomically(path, whole)


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
