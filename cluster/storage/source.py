"""Ranges of bytes out of a file or an object, read into given memory."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cluster.storage.object_path import ObjectPath, translated
from cluster.storage.traffic import count_moved

if TYPE_CHECKING:
    from obstore import GetOptions

_LONGEST_READ_BYTES = 1 << 30  # Linux gives at most 2 GiB less a page for one call
_RANGE_BYTES = 8 << 20
WINDOW_BYTES = 4 << 20
"""Taken at once for reads that are smaller than half of it: at 100 MB/s no more than the delay of a request."""
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
        options: GetOptions = {"range": (position, position + len(target))}
        if self._e_tag is not None:
            options["if_match"] = self._e_tag
        try:
            with translated(self._path):
                got = self._path.store.get(self._path.key, options=options).bytes()
        except FileExistsError as error:
            raise OSError(errno.ESTALE, "it was replaced while it was read", str(self._path)) from error
        if len(got) != len(target):
            raise OSError(errno.EREMOTEIO, f"the store gave {len(got)} of {len(target)} bytes", str(self._path))
        target[:] = memoryview(got).cast("B")
        count_moved(len(target))


class ReadAhead:
    """Small reads out of several sources, served from the bytes that were taken with the one before.

    What is read of a file lies mostly in its order, in pieces of any size; to ask a store for each costs its delay each
    time. Reads that are not small, and all of files, go past it.

    Args:
        windows: Of how many sources the last bytes are kept, each at most WINDOW_BYTES.
    """

    def __init__(self, windows: int = 8) -> None:
        self._windows = windows
        self._kept: OrderedDict[int, tuple[ByteSource, int, memoryview]] = OrderedDict()

    def read_into(self, source: ByteSource, target: memoryview, position: int) -> int:
        """As `ByteSource.read_into`."""
        if isinstance(source, FileSource) or len(target) >= WINDOW_BYTES // 2:
            return source.read_into(target, position)
        _, start, window = self._kept.get(id(source), (source, 0, memoryview(b"")))
        if not start <= position <= position + len(target) <= start + len(window):
            window = memoryview(bytearray(min(WINDOW_BYTES, max(source.size_bytes - position, 0))))
            start, window = position, window[: source.read_into(window, position)]
            self._kept[id(source)] = (source, start, window)  # held, so that no other source gets its id
        self._kept.move_to_end(id(source))
        while len(self._kept) > self._windows:
            self._kept.popitem(last=False)
        part = window[position - start : position - start + len(target)]
        target[: len(part)] = part
        return len(part)
