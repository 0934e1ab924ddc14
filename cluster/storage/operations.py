"""What runs do with their storage, whatever it is: publish, list, read, remove.

A file system publishes by rename, an object store by a single PUT; neither shows anything half-written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import xxhash

from cluster.storage.object_path import ObjectPath, translated
from cluster.storage.source import ByteSource, FileSource, ObjectSource
from data_pipeline import publish
from data_pipeline.publish import BLOCK_BYTES, FileHashes

StoragePath = Path | ObjectPath
"""Where something of a run lies."""

_LEAST_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""Of one upload; S3 allows 10,000."""
_UPLOADS_AT_ONCE = 4


class Writing(Protocol):
    """A file or object in the making."""

    def write(self, data: memoryview, /) -> object:
        """Append bytes."""
        ...


def storage_path(place: str | os.PathLike[str] | ObjectPath) -> StoragePath:
    """A path of a file system, or one of an object store where `place` is a URI.

    Raises:
        StorageError: It is a URI of nothing that is known.
    """
    if isinstance(place, ObjectPath):
        return place
    text = os.fspath(place)
    return ObjectPath(text) if "://" in text else Path(text)


def write_atomically(path: StoragePath, data: bytes) -> None:
    """Write a file or object so that a reader sees the old content or the new one, whole.

    Raises:
        OSError: It cannot be written.
    """
    if isinstance(path, ObjectPath):
        with translated(path):
            path.store.put(path.key, data, use_multipart=False)
    else:
        publish.write_atomically(path, data)


def create_exclusively(path: StoragePath, data: bytes) -> bool:
    """Create a file or object that must not exist.

    Returns:
        False where it exists with another content: another process was first.

    Raises:
        OSError: It cannot be written.
    """
    try:
        if isinstance(path, ObjectPath):
            with translated(path):
                path.store.put(path.key, data, mode="create", use_multipart=False)
        else:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError:
        # An answer of a store may be lost and the request repeated: then what exists is our own.
        return isinstance(path, ObjectPath) and path.read_bytes() == data
    return True


def replace(path: StoragePath, change: Callable[[bytes | None], bytes]) -> bytes:
    """Replace a file or object by what a function makes of its content; None where there is none.

    In an object store nothing that another process wrote in between is lost: the function is called again with it. In
    a file system the callers must keep each other away.

    Returns:
        The new content.

    Raises:
        OSError: It cannot be read or written.
    """
    if not isinstance(path, ObjectPath):
        new = change(path.read_bytes() if path.exists() else None)
        publish.write_atomically(path, new)
        return new
    while True:
        try:
            with translated(path):
                found = path.store.get(path.key)
                old, e_tag = bytes(found.bytes()), found.meta["e_tag"]
        except FileNotFoundError:
            new = change(None)
            if create_exclusively(path, new):
                return new
            continue
        new = change(old)
        try:
            with translated(path):
                path.store.put(path.key, new, mode={"e_tag": e_tag}, use_multipart=False)
        except FileExistsError:
            if path.read_bytes() != new:
                continue
        return new


def list_names(path: StoragePath) -> list[str]:
    """Names of what lies directly in a directory, or below a prefix, sorted.

    Raises:
        FileNotFoundError: There is no such directory, or nothing below the prefix.
        OSError: It cannot be listed.
    """
    if not isinstance(path, ObjectPath):
        return sorted(os.listdir(path))
    with translated(path):
        found = path.store.list_with_delimiter(f"{path.key}/" if path.key else None)
    keys = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
    if not keys:
        raise FileNotFoundError(2, "there is nothing below it", str(path))
    return sorted({key.rstrip("/").rsplit("/", 1)[-1] for key in keys})


def size_bytes(path: StoragePath) -> int:
    """Size of a file or object.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be measured.
    """
    if not isinstance(path, ObjectPath):
        return path.stat().st_size
    with translated(path):
        return path.store.head(path.key)["size"]


def make_directory(path: StoragePath) -> None:
    """Make sure that files can be written below a path; object stores need nothing."""
    if not isinstance(path, ObjectPath):
        path.mkdir(parents=True, exist_ok=True)


def sync_directory(path: StoragePath) -> None:
    """Make renames inside a directory durable; what an object store has taken is durable."""
    if not isinstance(path, ObjectPath):
        publish.sync_directory(path)


def free_bytes(path: StoragePath) -> int | None:
    """Room that is left for us where a path lies; None where the storage has no bounds or does not tell."""
    if isinstance(path, ObjectPath):
        return None
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize if system.f_blocks else None


def remove_tree(path: StoragePath) -> None:
    """Remove a directory, or all objects below a prefix; what cannot be removed stays."""
    if not isinstance(path, ObjectPath):
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        with translated(path):
            for batch in path.store.list(f"{path.key}/"):
                path.store.delete([each["path"] for each in batch])
    except OSError:
        return


def move_tree(source: StoragePath, target: StoragePath, *, last: str) -> None:
    """Move a directory to a place that does not exist; in one rename, or object by object.

    Args:
        source: What to move.
        target: Where to, in the same storage.
        last: Name of the file that makes the whole what it is: it arrives last and leaves first.

    Raises:
        OSError: It cannot be moved.
    """
    if not isinstance(source, ObjectPath) or not isinstance(target, ObjectPath):
        assert not isinstance(source, ObjectPath)
        assert not isinstance(target, ObjectPath)
        source.rename(target)
        return
    with translated(source):
        keys = [each["path"] for batch in source.store.list(f"{source.key}/") for each in batch]
        marked = f"{source.key}/{last}"
        for key in sorted(keys, key=lambda key: key == marked):
            source.store.copy(key, target.key + key.removeprefix(source.key))
        for key in sorted(keys, key=lambda key: key != marked):
            source.store.delete(key)


def copy_file(source: StoragePath, target: StoragePath) -> None:
    """Copy a file or object, between storages too; the target is not durable before `sync_directory`.

    Raises:
        OSError: It cannot be copied.
    """
    origin = open_for_reading(source)
    buffer = memoryview(bytearray(min(_LEAST_PART_BYTES, max(origin.size_bytes, 1))))
    with writing(target, origin.size_bytes) as sink:
        position = 0
        while count := origin.read_into(buffer, position):
            sink.write(buffer[:count])
            position += count


def open_for_reading(path: StoragePath) -> ByteSource:
    """Open a file or object, to read ranges of it.

    Raises:
        OSError: It cannot be opened.
    """
    return ObjectSource(path) if isinstance(path, ObjectPath) else FileSource(path)


def hashes(path: StoragePath) -> FileHashes:
    """Hash a file or object in one pass, as a whole and by block.

    Raises:
        OSError: It cannot be read.
    """
    if not isinstance(path, ObjectPath):
        return publish.file_hashes(path)
    source = ObjectSource(path)
    whole, blocks, position = xxhash.xxh3_128(), [], 0
    buffer = memoryview(bytearray(min(32 * BLOCK_BYTES, max(source.size_bytes, 1))))
    while count := source.read_into(buffer, position):
        for start in range(0, count, BLOCK_BYTES):
            block = buffer[start : min(start + BLOCK_BYTES, count)]
            whole.update(block)
            blocks.append(xxhash.xxh3_64_hexdigest(block))
        position += count
    return FileHashes(size_bytes=position, hash=whole.hexdigest(), blocks=tuple(blocks))


@contextmanager
def writing(path: StoragePath, size_bytes: int) -> Iterator[Writing]:
    """Write a large file or object in pieces; durable when the block ends, and not published by it.

    A file under its own name is seen while it grows, so this is for what a manifest names once it is whole. An object
    appears at the end.

    Args:
        path: The file; its directory exists.
        size_bytes: About how long it becomes.

    Raises:
        OSError: It cannot be written.
    """
    if not isinstance(path, ObjectPath):
        with open(path, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        return
    import obstore

    part_bytes = max(_LEAST_PART_BYTES, -(-size_bytes // _MOST_PARTS))
    sink = obstore.open_writer(path.store, path.key, buffer_size=part_bytes, max_concurrency=_UPLOADS_AT_ONCE)
    with translated(path):
        yield _Upload(path, sink)
        sink.close()


class _Upload:
    """An upload in parts; an error of the store comes out as an `OSError` at the part that met it."""

    def __init__(self, path: ObjectPath, sink: Any) -> None:
        self._path = path
        self._sink = sink

    def write(self, data: memoryview, /) -> None:
        """Append bytes."""
        with translated(self._path):
            self._sink.write(bytes(data))  # a copy: the library reads it later, and our memory is used again
