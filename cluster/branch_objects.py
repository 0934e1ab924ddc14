"""Making a branch in an object store, which renames nothing: in its own place, with its run.json last.

A lease keeps two commands that make a branch of one name apart, and tells one that works from one that was killed; an
object `branching.json` marks what the latter left, which is no run, as ours to remove.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.branch import CLAIM_NAME, LEASE_NAME, refuse_taken_name
from cluster.errors import ClusterError, StorageError
from cluster.lease import forget, hold
from cluster.run_directory import RUN_NAME
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import list_sizes, remove_files, write_atomically
from cluster.storage.retry import retried

logger = logging.getLogger(__name__)


@contextmanager
def making(target: ObjectPath) -> Iterator[Callable[[], None]]:
    """Hold the place of a branch, which nobody else makes meanwhile; empty again where the block ends with an error.

    Yields:
        What makes sure that nobody else does, and raises where this command did not answer for too long.

    Raises:
        RunBusyError: Another command is making it.
        RunRefusedError: The name is taken.
        StorageError: The store does not do its part.
    """
    try:
        with hold(target) as lease:
            refuse_taken_name(target)
            _clear(target, lease.confirm)
            write_atomically(target / CLAIM_NAME, b"{}\n")
            try:
                yield lease.confirm
            except BaseException:
                with suppress(OSError, ClusterError):  # what lies there by now may be another's
                    _clear(target, lease.confirm)
                raise
    except OSError as error:
        raise StorageError(
            f"branch {target} could not be made: {error.strerror or error}. It is no run, and the next branch of this "
            "name removes what is left of it. Look at the store, and give the same command again."
        ) from error
    finally:
        with suppress(OSError):
            forget(target)


def publish(small: Path, target: ObjectPath, still_ours: Callable[[], None]) -> None:
    """Put the small files of a branch beside its checkpoint, the one that makes it a run last.

    Args:
        small: Where they lie.
        target: The branch.
        still_ours: Called before each of them is put; its error ends it.
    """
    for path in sorted(small.iterdir(), key=lambda path: path.name == RUN_NAME):
        place = target / path.name
        still_ours()
        retried(lambda place=place, path=path: write_atomically(place, path.read_bytes()), f"writing {place}")  # type: ignore[misc]
    with suppress(OSError):  # beside a run.json it says nothing
        remove_files([target / CLAIM_NAME])


def _clear(target: ObjectPath, still_ours: Callable[[], None]) -> None:
    """Remove what is there apart from the lease, the mark last."""
    names = [name for name in list_sizes(target) if not name.startswith(f"{LEASE_NAME}/")]
    if names:
        logger.info("removing what a branch that was not finished has left at %s", target)
        still_ours()
        remove_files(target / name for name in names if name != CLAIM_NAME)
        still_ours()
        remove_files([target / CLAIM_NAME])


__all__ = ["making", "publish"]
