"""Making a branch: its whole directory beside its parent's, or nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import branch_objects
from cluster.branch import BRANCHED_FROM, PARENT, Branch, refuse_taken_name, vanished
from cluster.checkpoint import CheckpointInfo, Manifest, verify
from cluster.checkpoint.manifest import MANIFEST_NAME, attempt_name, step_directory
from cluster.conversation import CHAT_TEMPLATE, chat_facts
from cluster.errors import CheckpointError, StorageError
from cluster.healing import HEALING, Decisions
from cluster.run_directory import PUBLISHED_STEP, TOKENIZER_NAME, RunDirectory, config_as_dict, prepare_storage
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    StoragePath,
    each_of,
    make_directory,
    storage_path,
    sync_directory,
    write_atomically,
)
from cluster.storage.retry import retried
from cluster.storage.transfer import copy_file
from data_pipeline.publish import sync_file

logger = logging.getLogger(__name__)

_WORKING = ".branching-"
_ATTEMPT = 0
"""The checkpoint that was taken over belongs to no attempt of the child; its first is number 1."""
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)

Progress = Callable[[int, int], None]
"""progress(bytes done, bytes in all)"""


def create_branch(branch: Branch, resolved_yaml: str, progress: Progress = lambda done, total: None) -> StoragePath:
    """Make the run's directory: built under a hidden name, renamed when it is whole and verified.

    The tensor files are hard links to the parent's where the file system can, so that the parent may go on, and delete
    its own, meanwhile; elsewhere they are copied, within an object store by the store itself. There the run is built
    in its place, and is none before its run.json comes, last.

    Args:
        branch: From `plan_branch`.
        resolved_yaml: Text of config.yaml, of `branch.config`.
        progress: Told how many bytes were verified.

    Returns:
        The directory.

    Raises:
        CheckpointError: The parent's checkpoint is damaged, or was removed in this moment.
        CheckpointUnreadableError: It cannot be read here and now.
        RunRefusedError: The name was taken meanwhile.
        StorageError: The storage is full or cannot be written.
    """
    target = branch.directory
    prepare_storage(storage_path(branch.config.storage))
    if isinstance(target, ObjectPath):
        with (
            branch_objects.making(target) as still_ours,
            tempfile.TemporaryDirectory(prefix="longhaul-branch-") as small,
        ):
            _fill(branch, resolved_yaml, target, Path(small), progress)
            branch_objects.publish(Path(small), target, still_ours)
    else:
        with _workplace(target) as working:
            _fill(branch, resolved_yaml, working, working, progress)
            sync_directory(working / "checkpoints")
            _publish(working, target)
    return target


def _fill(branch: Branch, resolved_yaml: str, working: StoragePath, small: Path, progress: Progress) -> None:
    """Put the checkpoint into one directory, and the run's small files into another or the same."""
    manifest = _take_over_files(branch, working, progress)
    record = RunDirectory(small)
    record.create(branch.config, resolved_yaml)
    facts = record.update({PARENT: branch.lineage, PUBLISHED_STEP: branch.step})
    run = {
        **{key: value for key, value in manifest.run.items() if key != CHAT_TEMPLATE},
        "data_position": branch.plan.position_after(branch.step, branch.skips),
        "skip_ledger": branch.skips.to_json(),
        "data_plan": branch.plan.describe(),
        "data_plan_fingerprint": branch.plan.fingerprint,
        **chat_facts(branch.plan),
        "config": config_as_dict(branch.config),
        "rng": {**manifest.run.get("rng", {}), "seed": branch.config.seed},
        "wandb_id": facts["wandb"]["id"],
        BRANCHED_FROM: branch.lineage,
        **_healing(branch),
    }
    manifest = replace(manifest, run=run, next_batch_loss=branch.next_batch_loss)
    write_atomically(step_directory(working, branch.step) / MANIFEST_NAME, manifest.to_bytes())
    write_atomically(small / TOKENIZER_NAME, (branch.plan.datasets[0].directory / TOKENIZER_NAME).read_bytes())


def _healing(branch: Branch) -> dict[str, Any]:
    """What healing decided up to the branch; its alarms after that are the child's own."""
    saved = branch.manifest.run.get(HEALING)
    if saved is None:
        return {}
    withheld = tuple(step for step in saved["withheld"] if step <= branch.step)
    losses = [] if branch.data_changes else saved["losses"]  # other data has losses of another level
    return {HEALING: {**Decisions(skips=branch.skips, withheld=withheld).to_json(), "losses": losses}}


def _take_over_files(branch: Branch, working: StoragePath, progress: Progress) -> Manifest:
    """Link or copy the tensor files and verify them.

    Returns:
        The manifest that names them in their new places.
    """
    directory = step_directory(working, branch.step)
    places = {record.path: f"{attempt_name(_ATTEMPT)}/{Path(record.path).name}" for record in branch.manifest.files}
    make_directory(directory / attempt_name(_ATTEMPT))

    def take(old: str) -> None:
        try:
            _link_or_copy(branch.info.directory / old, directory / places[old])
        except FileNotFoundError as error:
            raise vanished(branch.info) from error

    beside = isinstance(branch.info.directory, ObjectPath)  # a store that copies by itself does several at once
    # All of them before the first is read: what is linked cannot vanish any more.
    each_of(places, take, at=directory if beside else Path())
    sync_directory(directory / attempt_name(_ATTEMPT))
    manifest = replace(
        branch.manifest,
        attempt=_ATTEMPT,
        created_unix_seconds=time.time(),
        pieces={
            name: tuple(replace(piece, file=places[piece.file]) for piece in pieces)
            for name, pieces in branch.manifest.pieces.items()
        },
        files=tuple(replace(record, path=places[record.path]) for record in branch.manifest.files),
    )
    taken = CheckpointInfo(branch.step, directory, manifest, None)
    done = 0
    for old, record in zip(places, manifest.files, strict=True):
        progress(done, manifest.size_bytes)
        try:
            verify(taken, [record])
        except CheckpointError as error:
            told = str(error).replace(str(directory / record.path), str(branch.info.directory / old))
            raise type(error)(f"{told} Branch from another step, or restore the file from a copy.") from error
        done += record.size_bytes
    progress(done, manifest.size_bytes)
    return manifest


def _link_or_copy(source: StoragePath, target: StoragePath) -> None:
    if isinstance(source, ObjectPath) or isinstance(target, ObjectPath):
        retried(lambda: copy_file(source, target), f"copying {source}")
        return
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError as error:  # another file system, one without links, or somebody else's files
        logger.info("%s is copied, since it cannot be linked (%s)", source, error.strerror)
        shutil.copyfile(source, target)
        sync_file(target)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A hidden directory beside the target that is gone afterwards; the lock on it ends with the process."""
    _remove_leftovers(target.parent)
    working = target.with_name(f".{target.name}{_WORKING}{secrets.token_hex(4)}")
    descriptor = None
    try:
        working.mkdir()
        descriptor = os.open(working, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # a file system without locks: what a killed command leaves there stays
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield working
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"the storage of {target} is full ({error.strerror}); the branch was not made, and nothing of it is left. "
            "Make room there, or give another storage=DIRECTORY."
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_leftovers(storage: Path) -> None:
    """Remove what branch commands that were killed have left."""
    for leftover in storage.glob(f".*{_WORKING}*"):
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                logger.info("removing %s, left by a command that was killed", leftover)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _publish(working: Path, target: Path) -> None:
    sync_directory(working)
    refuse_taken_name(target)  # a rename would take the place of an empty directory
    try:
        os.rename(working, target)
    except OSError as error:
        if error.errno in _TAKEN:
            refuse_taken_name(target)
        raise
    sync_directory(target.parent)


__all__ = ["create_branch"]
