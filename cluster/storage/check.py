"""Proof that a storage does what runs need of it, and what to do where it does not."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from cluster.errors import StorageError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    StoragePath,
    create_exclusively,
    list_names,
    make_directory,
    remove_files,
    replace,
    storage_path,
    write_atomically,
)
from cluster.storage.retry import Backoff, retried

_REPLACEMENTS_TRIED = 4
"""The first of them fails on purpose."""
_METADATA_SERVICE = "169.254.169.254"
"""Where a node of a cloud asks for its role's credentials; the last resort, where nothing else has given any."""


def prepare_storage(path: StoragePath, *, patient: bool = False) -> None:
    """Create the directory and prove that it can be written; of an object store, that it can keep two drivers apart.

    Args:
        path: Where runs lie.
        patient: Whether a store that does not answer is waited for; a person is rather told at once.

    Raises:
        StorageError: It cannot.
    """
    if isinstance(path, ObjectPath):
        _prove_store(path, Backoff() if patient else Backoff(tries=1))
    else:
        _prove_directory(path)


def reachable_or_unknown(storage: str) -> str | None:
    """Look from this machine at the storage of a job that will run elsewhere.

    Args:
        storage: Path or URI, of which only object stores can be reached from everywhere.

    Returns:
        Why this machine cannot tell, for want of credentials or of a way there; None where it can, or need not.

    Raises:
        StorageError: The URI is no store's, or there is no such bucket.
    """
    path = storage_path(storage)
    if not isinstance(path, ObjectPath):
        return None
    try:
        prepare_storage(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError) or error.__cause__ is None:
            raise
        return str(error)
    return None


def account_of(path: StoragePath, error: OSError) -> str:
    """What is wrong with a storage and what to do, in two sentences; begins with a small letter."""
    said = error.strerror or str(error)
    if not isinstance(path, ObjectPath):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{said}. {'Make room there' if full else 'Give a directory that you may write'}"
    if isinstance(error, FileNotFoundError):
        return (
            f"there is no bucket {path.bucket}, or it lies in another region. Create it, or mend AWS_REGION or the name"
        )
    if _METADATA_SERVICE in said:
        return (
            "no credentials were found. Give the process AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the variables "
            "of GCS or Azure), or its machine a role that may use the bucket"
        )
    if isinstance(error, PermissionError):
        return (
            f"{said}. The credentials are wrong, or may not list, read, write and delete there: mend "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role's policy"
        )
    if error.errno == errno.EREMOTEIO:
        return f"the store does not answer ({said}). Look at the network and at AWS_ENDPOINT_URL"
    return f"{said}. Look at the store's address in AWS_ENDPOINT_URL and AWS_REGION"


def _prove_directory(path: Path) -> None:
    probe = path / f".probe-{os.getpid()}"
    try:
        make_directory(path)
        write_atomically(probe, b"written and read back")
        probe.read_bytes()
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)


def _prove_store(path: ObjectPath, backoff: Backoff) -> None:
    """Write, read, list and delete, and see that the store refuses what would let two drivers write one run."""
    try:
        lacking, there = retried(lambda: _probe(path), f"trying out {path}", backoff=backoff)
    except OSError as error:
        raise _refused(path, error) from error
    if not there:
        raise StorageError(f"storage {path} does not list what was written there. Set `storage` to another store.")
    if lacking is not None:
        raise StorageError(
            f"storage {path}: the store {lacking} (If-None-Match and If-Match of S3's PUT). So two drivers could write "
            "one run, or none. Use a store that has conditional writes, a newer release of this one, or a directory "
            "that all nodes see."
        )


def _probe(path: ObjectPath) -> tuple[str | None, bool]:
    """What a store does wrong with conditional writes, and whether it lists what was written."""
    probe = path / f".probe-{secrets.token_hex(8)}"
    if create_exclusively(probe, b"first") and not create_exclusively(probe, b"second"):
        lacking = _fault_of_replacing(probe)
    else:
        lacking = "creates an object that exists already, although it was asked not to"
    there = probe.name in list_names(path)
    remove_files([probe])
    return lacking, there


class _NeverReplacedError(Exception):
    """The store says of an object that nobody touches, again and again, that it has changed."""


def _fault_of_replacing(probe: ObjectPath) -> str | None:
    """What is wrong where a change that was made between our reading and our writing must be noticed, and only that."""
    seen: list[bytes | None] = []

    def change(content: bytes | None) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            write_atomically(probe, b"changed meanwhile")
        if len(seen) > _REPLACEMENTS_TRIED:
            raise _NeverReplacedError
        return b"replaced"

    try:
        replace(probe, change)
    except _NeverReplacedError:
        return "refuses to replace an object that has not changed"
    if seen[1:2] != [b"changed meanwhile"]:
        return "replaces an object that has changed, although it was asked not to"
    return None


def _refused(path: StoragePath, error: OSError) -> StorageError:
    return StorageError(
        f"storage {path} cannot be written: {account_of(path, error)}, or set `storage` to another one."
    )
