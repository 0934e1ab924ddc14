"""A directory that appears whole or not at all: written beside its place under a hidden name, and renamed."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.errors import ExportError

logger = logging.getLogger(__name__)


@contextmanager
def published_directory(target: Path) -> Iterator[Path]:
    """Gives a new directory to write into, which takes the name of the target at the end, if nothing went wrong.

    What an attempt left that was killed is removed by the next to the same target; it is known by a lock that its
    process no longer holds.

    Raises:
        ExportError: The target exists, or cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise ExportError(
            f"{target} exists already, and an export never changes or replaces what is there. "
            "Give another directory, or remove that one first."
        )
    prefix = f".{target.name}.exporting-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent, prefix)
        working = target.parent / f"{prefix}{secrets.token_hex(4)}"
        working.mkdir()
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written ({error.strerror}: {error.filename}). "
            "Give a directory on a disk where files can be made."
        ) from error
    lock = os.open(working, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield working
        os.fsync(lock)
        _rename(working, target)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _rename(working: Path, target: Path) -> None:
    try:
        os.rename(working, target)
    except OSError as error:
        raise ExportError(
            f"{target} exists already: another export wrote it meanwhile ({error.strerror}). Give another directory."
        ) from error
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    for leftover in parent.glob(f"{prefix}*"):
        lock = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
        logger.info("removing %s, left by an export that did not finish", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
