"""What runs do with their storage, whatever it is: publish, list, read, remove.

A file system publishes by rename, an object store by a single PUT; neither shows anything half-written.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.storage.object_path import ObjectPath, translated
from cluster.storage.retry import Backoff
from data_pipeline import publish

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion

StoragePath = Path | ObjectPath
"""Where something of a run lies."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_REQUESTS_AT_ONCE = 16
"""Small ones: what takes 30 ms each takes 200 ms for 100."""
_ROUNDS = 20
"""Of reading and replacing an object that others change all the time."""
_BETWEEN_ROUNDS = Backoff(tries=_ROUNDS, first_seconds=0.02, longest_seconds=1.0)
"""Ten seconds or so in all: a round of another process takes two requests."""


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
        return isinstance(path, ObjectPath) and _holds(path, data)
    return True


def version(path: StoragePath) -> UpdateVersion | None:
    """What tells the present content of an object from any other, for `write_if_unchanged`.

    Returns:
        None where there is no object, and for every file: in a file system the callers keep each other away.

    Raises:
        OSError: The store does not tell.
    """
    if not isinstance(path, ObjectPath):
        return None
    try:
        with translated(path):
            return _version(path.store.head(path.key))
    except FileNotFoundError:
        return None


def write_if_unchanged(path: StoragePath, data: bytes, version: UpdateVersion | None) -> bool:
    """Write a file atomically, or an object only where it still is what it was when `version` was asked.

    Returns:
        False where another process has changed it since then, and nothing was written.

    Raises:
        OSError: It cannot be written.
    """
    if not isinstance(path, ObjectPath):
        write_atomically(path, data)
        return True
    if version is None:
        return create_exclusively(path, data)
    try:
        with translated(path):
            path.store.put(path.key, data, mode=version, use_multipart=False)
    except FileNotFoundError:  # S3's word for an object that was to be replaced, and was deleted
        return False
    except FileExistsError:  # an answer may have been lost, and the request repeated: then it is our own
        return _holds(path, data)
    return True


def replace(path: StoragePath, change: Callable[[bytes | None], bytes]) -> bytes:
    """Replace a file or object by what a function makes of its content; None where there is none.

    In an object store nothing that another process wrote in between is lost: the function is called again with it. In
    a file system the callers must keep each other away.

    Returns:
        The new content.

    Raises:
        OSError: It cannot be read or written; EBUSY where it was another one each time that it was to be replaced.
    """
    if not isinstance(path, ObjectPath):
        new = change(path.read_bytes() if path.exists() else None)
        publish.write_atomically(path, new)
        return new
    for number in range(1, _ROUNDS + 1):
        old, seen = _read_with_version(path)
        new = change(old)
        if write_if_unchanged(path, new, seen):
            return new
        if number < _ROUNDS:
            _BETWEEN_ROUNDS.sleep(_BETWEEN_ROUNDS.wait_seconds(number))
    raise OSError(
        errno.EBUSY, f"it had changed each of the {_ROUNDS} times that it was to be replaced, says the store", str(path)
    )


def _read_with_version(path: ObjectPath) -> tuple[bytes | None, UpdateVersion | None]:
    """An object and what tells it from any other content; None and None where there is none."""
    try:
        with translated(path):
            found = path.store.get(path.key)
            return bytes(found.bytes()), _version(found.meta)
    except FileNotFoundError:
        return None, None


def _holds(path: ObjectPath, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def _version(facts: ObjectMeta) -> UpdateVersion:
    """What stores tell contents apart by: one number or the other."""
    known: UpdateVersion = {}
    if facts["e_tag"] is not None:
        known["e_tag"] = facts["e_tag"]
    if facts["version"] is not None:
        known["version"] = facts["version"]
    return known


def each_of(items: Iterable[Item], operation: Callable[[Item], Result], *, at: StoragePath) -> list[Result]:
    """Do something to each item, in order; beside one another where they are in an object store.

    Args:
        items: What to do it to.
        operation: One request or a few; its first error ends the rest.
        at: Where the items lie.
    """
    if not isinstance(at, ObjectPath):
        return [operation(item) for item in items]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="requests") as pool:
        return list(pool.map(operation, items))


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


def list_sizes(path: ObjectPath) -> dict[str, int]:
    """Sizes in bytes of all objects below a prefix, by their names relative to it: a request for each 1,000 of them.

    Raises:
        OSError: They cannot be listed.
    """
    prefix = f"{path.key}/" if path.key else ""
    with translated(path):
        return {
            each["path"].removeprefix(prefix): each["size"]
            for batch in path.store.list(prefix or None)
            for each in batch
        }


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
    if not path.key:
        raise ValueError(f"{path} is a whole bucket, and that is not ours to remove")
    with suppress(OSError), translated(path):
        for batch in path.store.list(f"{path.key}/"):
            path.store.delete([each["path"] for each in batch])


def remove_files(paths: Iterable[StoragePath]) -> None:
    """Remove files or objects of one storage, in order, in as few requests as it takes; absent ones are no error.

    Raises:
        OSError: One cannot be removed.
    """
    paths = list(paths)
    objects = [path for path in paths if isinstance(path, ObjectPath)]
    if objects:
        try:
            with translated(objects[0]):
                objects[0].store.delete([path.key for path in objects])
        except FileNotFoundError:  # stores that tell, tell it of the first one
            for each in objects:
                each.unlink(missing_ok=True)
    for path in paths:
        if not isinstance(path, ObjectPath):
            path.unlink(missing_ok=True)
