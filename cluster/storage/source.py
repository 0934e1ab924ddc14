"""Ranges of bytes out of a file or an object, read into given memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cluster.storage.object_path import ObjectPath, translated

_LONGEST_READ_BYTES = 1 << 30  # Linux gives at most 2 GiB less a page for one call
_RANGE_BYTES = 8 << 20
_CONNECTIONS = 4
"""Ranges asked for at once: with 8 MiB each enough to fill a fast network, and 32 MiB of memory."""


class ByteSource(Protocol):
    """An open file or object."""

    size_bytes: int

    def read_into(self, target: memoryview, position: int) -> int:
        """Fill memory with the bytes from a position on.

        Returns:
            How many there were; fewer than asked for where the file ends.

        Raises:
            OSError: They cannot be read.
        """
        ...


class FileSource:
    """A file of a file system."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, target: memoryview, position: int) -> int:
        """Fill memory with the bytes from a position on."""
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done : done + _LONGEST_READ_BYTES]], position + done)
            if count == 0:
                break
            done += count
        return done


class ObjectSource:
    """An object of an object store; that it is replaced while it is read is noticed."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        with translated(path):
            facts = path.store.head(path.key)
        self.size_bytes = facts["size"]
        self._e_tag = facts["e_tag"]

    def read_into(self, target: memoryview, position: int) -> int:
        """Fill memory with the bytes from a position on."""
        wanted = min(len(target), max(self.size_bytes - position, 0))
        starts = range(0, wanted, _RANGE_BYTES)
        if len(starts) <= 1:
            self._fill(target[:wanted], position)
        else:
            with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="object-source") as pool:
                ends = (min(start + _RANGE_BYTES, wanted) for start in starts)
                for _ in pool.map(lambda a, b: self._fill(target[a:b], position + a), starts, ends):
                    pass
        return wanted

    def _fill(self, target: memoryview, position: int) -> None:
        if not target:
            return
        with translated(self._path):
            got = memoryview(self._path.store.get_range(self._path.key, start=position, length=len(target)))
        target[:] = got.cast("B")
