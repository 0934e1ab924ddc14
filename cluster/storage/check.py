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

_METADATA_SERVICE = "169.254.169.254"
"""Where a node of a cloud asks for its role's credentials; the last resort, where nothing else has given any."""


def prepare_storage(path: StoragePath) -> None:
    """Create the directory and prove that it can be written; of an object store, that it can keep two drivers apart.

    Raises:
        StorageError: It cannot.
    """
    if isinstance(path, ObjectPath):
        _prove_store(path)
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


def _prove_store(path: ObjectPath) -> None:
    """Write, read, list and delete, and see that the store refuses what would let two drivers write one run."""
    probe = path / f".probe-{secrets.token_hex(8)}"
    try:
        exclusive = create_exclusively(probe, b"first") and not create_exclusively(probe, b"second")
        conditional = _replaces_conditionally(probe)
        there = probe.name in list_names(path)
        remove_files([probe])
    except OSError as error:
        raise _refused(path, error) from error
    if not there:
        raise StorageError(f"storage {path} does not list what was written there. Set `storage` to another store.")
    if not exclusive or not conditional:
        lacking = "creates an object that exists already" if not exclusive else "replaces an object that has changed"
        raise StorageError(
            f"storage {path}: the store {lacking}, although it was asked not to (If-None-Match and If-Match of S3's "
            "PUT). So two drivers could write one run. Use a store that has conditional writes, a newer release of "
            "this one, or a directory that all nodes see."
        )


def _replaces_conditionally(probe: ObjectPath) -> bool:
    """Whether a change that was made between our reading and our writing is noticed."""
    seen: list[bytes | None] = []

    def change(content: bytes | None) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            write_atomically(probe, b"changed meanwhile")
        return b"replaced"

    replace(probe, change)
    return seen[1:] == [b"changed meanwhile"]


def _refused(path: StoragePath, error: OSError) -> StorageError:
    return StorageError(
        f"storage {path} cannot be written: {account_of(path, error)}, or set `storage` to another one."
    )
