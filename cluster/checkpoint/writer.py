"""Writing checkpoints beside the training: a copy on the step path, everything else in a thread without collectives.

Every rank writes its file and then its index; rank 0 waits for all indexes and for the loss of the next batch, and
publishes the manifest last: into an object store, where a request may be on its way for long, only if nobody else has
published that step since the lease was looked at; and it is taken back where the run has another driver or attempt by
then, which may have removed the files that it names. At most one checkpoint is in flight. What the storage refuses for
a moment is tried again; a checkpoint that cannot be written is given up and the next one is tried; only two in a row,
or the last of a run, are an error.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.checkpoint import catalog, part
from cluster.checkpoint.leftovers import may_be_published, remove_superseded
from cluster.checkpoint.local_copy import LocalCopies
from cluster.checkpoint.manifest import MANIFEST_NAME, FileRecord, attempt_name, step_directory
from cluster.checkpoint.rejection import REJECTED_NAME
from cluster.config import CheckpointConfig
from cluster.engines.protocol import FragmentState
from cluster.errors import CheckpointError, ClusterError, StorageError
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import (
    StoragePath,
    each_of,
    free_bytes,
    list_sizes,
    make_directory,
    remove_files,
    remove_tree,
    sync_directory,
    version,
    write_atomically,
    write_if_unchanged,
)
from cluster.storage.retry import Backoff, retried
from data_pipeline.errors import DataError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_POLL_SECONDS = 0.02
_POLL_STORE_SECONDS = 0.5
"""Each look into an object store is a request, which is paid for."""
_FAILURES_ALLOWED = 1


@dataclass(frozen=True, kw_only=True)
class WriterHooks:
    """What a writer tells the attempt, and asks of it."""

    agree: Callable[[str | None], str | None] = lambda problem: problem
    """Gives every rank the first rank's problem, or None; collective."""
    before_publish: Callable[[], None] = lambda: None
    """Called on rank 0 before the manifest is written; an error keeps it from being written, and is final."""
    check_ours: Callable[[], None] = lambda: None
    """Called on rank 0 right before the manifest is written and after it; raises CheckpointError where another attempt
    has taken over. An OSError that may pass has it called again."""
    on_saved: Callable[[dict[str, Any]], None] = lambda event: None
    """Called on rank 0 after it was."""
    needed: Callable[[], Collection[int]] = tuple
    """Gives the steps whose checkpoints retention leaves alone; called on rank 0."""


@dataclass
class _Save:
    """One checkpoint in flight."""

    step: int
    directory: StoragePath
    states: Sequence[FragmentState]
    run: Mapping[str, Any]
    next_loss: float | None = None
    next_loss_known: threading.Event = field(default_factory=threading.Event)
    written: threading.Event = field(default_factory=threading.Event)
    """This rank's part is on disk, or has failed."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Some rank's part has failed: there is nothing to wait for."""
    problem: str | None = None


class CheckpointWriter:
    """Writes this rank's part of checkpoints; on rank 0, publishes them and applies retention.

    Args:
        run_directory: The run.
        attempt: This attempt's number.
        rank: This rank.
        world_size: Number of ranks.
        policy: Which checkpoints stay, and where copies go.
        hooks: Agreement with the other ranks, and what happens around a publication.
        backoff: How transient errors of the storage are retried.
        other_ranks_timeout_seconds: How long rank 0 waits for the other parts.
    """

    def __init__(
        self,
        run_directory: StoragePath,
        *,
        attempt: int,
        rank: int,
        world_size: int,
        policy: CheckpointConfig,
        hooks: WriterHooks | None = None,
        backoff: Backoff | None = None,
        other_ranks_timeout_seconds: float = 1800.0,
    ) -> None:
        self._run_directory = run_directory
        self._attempt = attempt
        self._rank = rank
        self._world_size = world_size
        self._policy = policy
        self._hooks = hooks or WriterHooks()
        self._backoff = backoff or Backoff()
        self._timeout_seconds = other_ranks_timeout_seconds
        self._local = LocalCopies(Path(policy.local_copy), run_directory) if policy.local_copy is not None else None
        self._spare: Sequence[FragmentState] = ()
        self._whole_bytes = 0
        """Size of this attempt's last published checkpoint; known on rank 0."""
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._failures = 0

    def spare(self) -> Sequence[FragmentState]:
        """Wait for the checkpoint in flight, and give away its host copies for the next one to overwrite. Collective.

        So there is never more than one snapshot in memory.

        Raises:
            StorageError: Two checkpoints in a row could not be written.
        """
        self._settle(failures_allowed=_FAILURES_ALLOWED)
        spare, self._spare = self._spare, ()
        return spare

    def save(self, step: int, states: Sequence[FragmentState], run: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint from host copies, once an earlier one is done. Collective.

        Args:
            step: Steps made so far.
            states: `Engine.snapshot()` of this rank.
            run: The manifest's `run` part; used on rank 0.

        Raises:
            StorageError: Two checkpoints in a row could not be written.
        """
        self._settle(failures_allowed=_FAILURES_ALLOWED)
        directory = step_directory(self._run_directory, step) / attempt_name(self._attempt)
        save = self._save = _Save(step, directory, states, run)
        self._thread = threading.Thread(target=self._work, args=(save,), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def next_loss(self, loss: float | None) -> None:
        """Hand in the loss of the batch after the checkpoint in flight; one that is not finite counts as unknown."""
        if self._save is not None and not self._save.next_loss_known.is_set():
            self._save.next_loss = loss if loss is not None and math.isfinite(loss) else None
            self._save.next_loss_known.set()

    @property
    def awaits_next_loss(self) -> bool:
        """Whether a checkpoint in flight still lacks the loss of the next batch."""
        return self._save is not None and not self._save.next_loss_known.is_set()

    def finish(self, *, last: bool = True) -> None:
        """Wait for the checkpoint in flight. Collective.

        Args:
            last: Whether nothing is saved after it by this command, so that a failure is an error.

        Raises:
            StorageError: It could not be written, and was the last one or the second in a row.
        """
        self._settle(failures_allowed=0 if last else _FAILURES_ALLOWED)
        self._spare = ()

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Let the checkpoint in flight end by itself, when this rank ends early and cannot agree with the others."""
        self.next_loss(None)
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def _settle(self, *, failures_allowed: int) -> None:
        save = self._save
        if save is None or self._thread is None:
            return
        self.next_loss(None)
        save.written.wait()
        problem = self._hooks.agree(save.problem)
        if problem is not None:
            save.abandoned.set()
        self._thread.join()
        problem = problem or self._hooks.agree(save.problem)  # rank 0 may have failed to publish
        self._spare = save.states
        self._save = self._thread = None
        self._failures = self._failures + 1 if problem else 0
        if problem and self._failures > failures_allowed:
            raise StorageError(
                f"{problem} Earlier checkpoints are whole. Make room (or lower checkpoint.keep_last) and give the same "
                "command again."
            )

    def _work(self, save: _Save) -> None:
        try:
            self._write_rank(save)
            save.written.set()
            if self._rank == 0:
                self._publish(save)
        except (OSError, ClusterError, DataError) as error:
            self._fail(save, error)
        except BaseException as error:
            self._fail(save, error)
            raise
        finally:
            save.written.set()

    def _fail(self, save: _Save, error: BaseException) -> None:
        """Note the problem, say it at once, and remove what no manifest names."""
        save.problem = (
            f"the checkpoint of step {save.step} could not be written to {save.directory}: {_explain(error)}."
        )
        logger.error("%s", save.problem)
        if not may_be_published(save.directory):
            remove_tree(save.directory)

    def _write_rank(self, save: _Save) -> None:
        path = part.tensors_path(save.directory, self._rank)
        self._retried(save, partial(make_directory, save.directory), save.directory)
        own_bytes = part.size_bytes(save.states)
        self._require_room(save, own_bytes)
        relative = f"{save.directory.name}/{path.name}"

        def write() -> FileRecord:
            if self._local is None:
                return part.write_tensors(path, save.states)
            with self._local.copying(save.step, relative, own_bytes) as add:
                return part.write_tensors(path, save.states, add)

        record = self._retried(save, write, path)
        index = part.describe(record, save.states)
        index_path = part.index_path(save.directory, self._rank)
        self._retried(save, partial(write_atomically, index_path, index), index_path)
        if self._local is not None:
            self._local.prune(save.step)

    def _require_room(self, save: _Save, own_bytes: int) -> None:
        """Refuse to begin what cannot be ended; rank 0 counts the whole checkpoint, once it knows how large one is.

        The other ranks may have begun: what they have written is no longer needed, and no longer free.
        """
        free = self._retried(save, partial(free_bytes, save.directory), save.directory)
        if free is None or isinstance(save.directory, ObjectPath):
            return
        needed_bytes = own_bytes
        if self._rank == 0:
            present_bytes = sum(child.stat().st_size for child in save.directory.glob("rank-*.safetensors"))
            needed_bytes = max(own_bytes, self._whole_bytes - present_bytes)
        if needed_bytes > free:
            raise StorageError(f"{needed_bytes:,} bytes are needed there and {free:,} are free")

    def _publish(self, save: _Save) -> None:
        parts = self._collect(save)
        save.next_loss_known.wait()
        manifest = part.assemble(
            parts,
            step=save.step,
            attempt=self._attempt,
            created_unix_seconds=time.time(),
            next_batch_loss=save.next_loss,
            run=save.run,
        )
        content, target = manifest.to_bytes(), save.directory.parent / MANIFEST_NAME

        def publish() -> bool:
            sync_directory(save.directory)
            seen = version(target)
            try:
                self._hooks.before_publish()
            except OSError as error:  # not tried again: a second fsync after one that failed proves nothing
                raise StorageError(f"the run's record is not durable: {_explain(error)}") from error
            self._hooks.check_ours()  # before every try: in the meantime another attempt may have begun
            if not write_if_unchanged(target, content, seen):
                raise StorageError("another attempt published a checkpoint of this step in the meantime")
            return seen is not None or isinstance(target, Path)

        try:
            may_replace = self._retried(save, publish, target)
            self._check_still_ours(save, target)
        except CheckpointError:
            self._take_back(save, target, content)
            raise
        self._whole_bytes = manifest.size_bytes
        try:
            self._hooks.on_saved({"event": "checkpoint_saved", "step": save.step, "bytes": manifest.size_bytes})
        except OSError as error:  # the checkpoint is whole and public: no failure of it
            logger.warning("that step %d was saved could not be noted in the run: %s", save.step, _explain(error))
        try:
            indexes = [part.index_path(save.directory, rank) for rank in range(self._world_size)]
            remove_files([target.parent / REJECTED_NAME, *indexes])  # what they say is of the manifest before, or in it
            if may_replace:
                remove_superseded(target.parent, self._attempt)
        except (OSError, CheckpointError) as error:
            logger.warning("what %s no longer needs could not be removed: %s", save.directory.parent, error)
        self.apply_retention()

    def _check_still_ours(self, save: _Save, manifest_path: StoragePath) -> None:
        """Look again after the publication: this process or its request may have stood still since the look before."""
        try:
            self._retried(save, self._hooks.check_ours, manifest_path)
        except OSError as error:  # it is most likely ours, and whole
            logger.warning("whether step %d was published in time is unknown: %s", save.step, _explain(error))

    def _take_back(self, save: _Save, manifest_path: StoragePath, content: bytes) -> None:
        """Remove the manifest of a superseded attempt, if it was written and is still that one."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                if manifest_path.read_bytes() == content:
                    manifest_path.unlink(missing_ok=True)

        try:
            self._retried(save, remove, manifest_path)
        except OSError as error:
            logger.warning("%s of a superseded attempt could not be removed: %s", manifest_path, _explain(error))

    def apply_retention(self) -> None:
        """Remove old checkpoints, on rank 0; one that cannot be removed now goes another time."""
        try:
            catalog.apply_retention(self._run_directory, self._policy, self._hooks.needed())
        except (OSError, CheckpointError) as error:
            logger.warning("old checkpoints of %s could not be removed: %s", self._run_directory, error)

    def _collect(self, save: _Save) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_seconds
        paths = [part.index_path(save.directory, rank) for rank in range(self._world_size)]
        there: set[str] = set()
        for rank, path in enumerate(paths):
            while path.name not in there and path.name not in (there := self._handed_in(save, path)):
                if save.abandoned.is_set():
                    raise CheckpointError("another rank could not write its part")
                if time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} did not hand in its part within {self._timeout_seconds:g} s")
                time.sleep(_POLL_STORE_SECONDS if isinstance(path, ObjectPath) else _POLL_SECONDS)

        def read(path: StoragePath) -> dict[str, Any]:
            return self._retried(save, partial(part.read_index, path), path)

        return each_of(paths, read, at=save.directory)

    def _handed_in(self, save: _Save, path: StoragePath) -> set[str]:
        """Names of indexes that are there: this one, or all that the store lists."""
        if isinstance(path, ObjectPath):
            return set(self._retried(save, partial(list_sizes, path.parent), path.parent))
        return {path.name} if self._retried(save, path.exists, path) else set()

    def _retried(self, save: _Save, operation: Callable[[], Value], path: StoragePath) -> Value:
        what = f"the checkpoint of step {save.step}: {path}"
        return retried(operation, what, backoff=self._backoff, given_up=save.abandoned.is_set)


def _explain(error: BaseException) -> str:
    """The reason in words."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the storage is full"
    return error.strerror or os.strerror(error.errno)
