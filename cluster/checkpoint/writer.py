"""Writing checkpoints beside the training: a copy on the step path, everything else in a thread without collectives.

Every rank writes its file and then its index; rank 0 waits for all indexes and for the loss of the next batch, and
publishes the manifest last. At most one checkpoint is in flight. One that cannot be written is given up and the next
one is tried; only two in a row, or the last of a run, are an error.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cluster.checkpoint import catalog
from cluster.checkpoint.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    Piece,
    attempt_name,
    file_from_json,
    piece_from_json,
    step_directory,
    tensor_key,
)
from cluster.engine import FragmentState
from cluster.errors import CheckpointError, ClusterError, StorageError
from data_pipeline.publish import file_hashes, seal, sync_directory, sync_file, unseal, write_atomically

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_OS_ERROR = re.compile(r"os error (\d+)")
_FAILURES_ALLOWED = 1


@dataclass
class _Save:
    """One checkpoint in flight."""

    step: int
    directory: Path
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
        keep_last: Checkpoints that retention leaves.
        agree: Gives every rank the first rank's problem, or None; collective.
        before_publish: Called on rank 0 before the manifest is written; an error keeps it from being written.
        on_saved: Called on rank 0 after it was.
        other_ranks_timeout_seconds: How long rank 0 waits for the other parts.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        attempt: int,
        rank: int,
        world_size: int,
        keep_last: int,
        agree: Callable[[str | None], str | None] = lambda problem: problem,
        before_publish: Callable[[], None] = lambda: None,
        on_saved: Callable[[dict[str, Any]], None] = lambda event: None,
        other_ranks_timeout_seconds: float = 1800.0,
    ) -> None:
        self._run_directory = run_directory
        self._attempt = attempt
        self._rank = rank
        self._world_size = world_size
        self._keep_last = keep_last
        self._agree = agree
        self._before_publish = before_publish
        self._on_saved = on_saved
        self._timeout_seconds = other_ranks_timeout_seconds
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._failures = 0

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

    def finish(self) -> None:
        """Wait for the checkpoint in flight, at the end of a run. Collective.

        Raises:
            StorageError: It could not be written.
        """
        self._settle(failures_allowed=0)

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
        problem = self._agree(save.problem)
        if problem is not None:
            save.abandoned.set()
        self._thread.join()
        problem = problem or self._agree(save.problem)  # rank 0 may have failed to publish
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
        except (OSError, SafetensorError) as error:
            self._fail(save, error)
            return
        finally:
            save.written.set()
        if self._rank != 0:
            return
        try:
            self._publish(save)
        except (OSError, ClusterError) as error:
            self._fail(save, error)

    def _fail(self, save: _Save, error: Exception) -> None:
        """Note the problem, say it at once, and remove what no manifest names."""
        save.states = ()
        save.problem = (
            f"the checkpoint of step {save.step} could not be written to {save.directory}: {_explain(error)}."
        )
        logger.error("%s", save.problem)
        if catalog.published_attempt(save.directory.parent) != save.directory.name:
            shutil.rmtree(save.directory, ignore_errors=True)

    def _write_rank(self, save: _Save) -> None:
        save.directory.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self._rank:05d}"
        path = save.directory / f"{name}.safetensors"
        tensors: dict[str, torch.Tensor] = {
            tensor_key(state, held.fragment.name): tensor
            for held in save.states
            for state, tensor in held.tensors.items()
        }
        save_file(tensors, path)
        sync_file(path)
        hashes = file_hashes(path)
        relative = f"{save.directory.name}/{path.name}"
        record = FileRecord(relative, hashes.size_bytes, hashes.hash, tuple(hashes.blocks))
        pieces = [
            {
                "name": held.fragment.name,
                "states": sorted(held.tensors),
                **asdict(
                    Piece(
                        group=held.fragment.group,
                        shape=held.fragment.shape,
                        offset=held.fragment.offset,
                        length=held.fragment.length,
                        file=relative,
                        scalars=held.scalars,
                    )
                ),
            }
            for held in save.states
        ]
        save.states = ()
        write_atomically(save.directory / f"{name}.json", seal({"file": asdict(record), "pieces": pieces}))

    def _publish(self, save: _Save) -> None:
        parts = self._collect(save)
        save.next_loss_known.wait()
        pieces: dict[str, list[Piece]] = {}
        states: set[str] = set()
        for part in parts:
            for item in part["pieces"]:
                states.update(item.pop("states"))
                pieces.setdefault(item.pop("name"), []).append(piece_from_json(item))
        manifest = Manifest(
            step=save.step,
            attempt=self._attempt,
            created_unix_seconds=time.time(),
            next_batch_loss=save.next_loss,
            run=save.run,
            state_names=tuple(sorted(states)),
            pieces={name: tuple(sorted(held, key=lambda piece: piece.offset)) for name, held in pieces.items()},
            files=tuple(file_from_json(part["file"]) for part in parts),
        )
        sync_directory(save.directory)
        self._before_publish()
        (save.directory.parent / catalog.REJECTED_NAME).unlink(missing_ok=True)
        write_atomically(save.directory.parent / MANIFEST_NAME, manifest.to_bytes())
        self._on_saved({"event": "checkpoint_saved", "step": save.step, "bytes": manifest.size_bytes})
        try:
            catalog.apply_retention(self._run_directory, self._keep_last)
        except OSError as error:
            logger.warning("old checkpoints of %s could not be removed: %s", self._run_directory, error)

    def _collect(self, save: _Save) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_seconds
        parts = []
        for rank in range(self._world_size):
            path = save.directory / f"rank-{rank:05d}.json"
            while not path.exists():
                if save.abandoned.is_set():
                    raise CheckpointError("another rank could not write its part")
                if time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} did not hand in its part within {self._timeout_seconds:g} s")
                time.sleep(_POLL_SECONDS)
            parts.append(unseal(path.read_bytes(), str(path)))
        return parts


def _explain(error: Exception) -> str:
    """The reason in words; safetensors gives the system's error number in its text only."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (match := _OS_ERROR.search(str(error))):
        number = int(match[1])
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the storage is full"
    return os.strerror(number) if number is not None else str(error)
