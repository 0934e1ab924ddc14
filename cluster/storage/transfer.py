"""Contents moved in and out of a storage: read by ranges, hashed, written in pieces, copied and moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import xxhash

from cluster.storage.object_path import ObjectPath, translated
from cluster.storage.operations import StoragePath, each_of, list_sizes, remove_files, size_bytes
from cluster.storage.source import ByteSource, FileSource, ObjectSource
from cluster.storage.upload import Upload
from data_pipeline import publish
from data_pipeline.publish import BLOCK_BYTES, FileHashes

_COPY_BYTES = 16 << 20
"""Held at a time while bytes go through this process."""
_REMOVED_AT_ONCE = 1_000
"""Objects that S3 deletes in one request."""
_COPIED_WHOLE_BYTES = 5 << 30
"""The longest object that S3 copies by itself in one request."""


class Writing(Protocol):
    """A file or object in the making."""

    def write(self, data: memoryview, /) -> object:
        """Append bytes."""
        ...


def move_tree(
    source: StoragePath,
    target: StoragePath,
    *,
    last: str,
    staying: Sequence[str] = (),
    still_ours: Callable[[], None] = lambda: None,
) -> None:
    """Move a directory to a place that does not exist; in one rename, or object by object.

    Args:
        source: What to move.
        target: Where to, in the same storage.
        last: Name of the file that makes the whole what it is: it arrives last and leaves first.
        staying: Names in it that stay where they are, in an object store; a directory moves whole.
        still_ours: Called once all is copied and before each request that removes something; its error ends it.

    Raises:
        OSError: It cannot be moved.
    """
    if not isinstance(source, ObjectPath) or not isinstance(target, ObjectPath):
        assert not isinstance(source, ObjectPath)
        assert not isinstance(target, ObjectPath)
        source.rename(target)
        return
    names = {name: size for name, size in list_sizes(source).items() if name.split("/")[0] not in staying}

    def copy(name: str) -> None:
        _copy_object(source / name, target / name, names[name])

    marked = [name for name in names if name == last]
    others = [name for name in names if name != last]
    each_of(others, copy, at=source)
    each_of(marked, copy, at=source)
    batches = [others[start : start + _REMOVED_AT_ONCE] for start in range(0, len(others), _REMOVED_AT_ONCE)]
    for batch in [marked, *batches]:
        still_ours()
        remove_files(source / name for name in batch)


def copy_file(source: StoragePath, target: StoragePath) -> None:
    """Copy a file or object, between storages too; the target is not durable before `sync_directory`.

    Raises:
        FileNotFoundError: There is no source.
        OSError: It cannot be copied.
    """
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        _copy_object(source, target, size_bytes(source))
    else:
        _copy_bytes(source, target)


def _copy_object(source: ObjectPath, target: ObjectPath, size_bytes: int) -> None:
    """Have the store copy an object by itself, where it can."""
    if source.bucket != target.bucket or size_bytes > _COPIED_WHOLE_BYTES:
        _copy_bytes(source, target)
        return
    with translated(source):
        source.store.copy(source.key, target.key)


def _copy_bytes(source: StoragePath, target: StoragePath) -> None:
    origin = open_for_reading(source)
    buffer = memoryview(bytearray(min(_COPY_BYTES, max(origin.size_bytes, 1))))
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
    upload = Upload(path, size_bytes)
    yield upload
    upload.close()
