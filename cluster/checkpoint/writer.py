"""Writing checkpoints beside the training: a copy on the step path, everything else in a thread without collectives.

Every rank writes its file and then its index; rank 0 waits for all indexes and for the loss of the next batch, and
publishes the manifest last. At most one checkpoint is in flight: the next one waits for it.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
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
from cluster.errors import CheckpointError, StorageError
from data_pipeline.publish import file_hashes, seal, sync_directory, sync_file, unseal, write_atomically

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


@dataclass
class _Save:
    """One checkpoint in flight."""

    step: int
    states: Sequence[FragmentState]
    run: Mapping[str, Any]
    next_loss_known: threading.Event
    next_loss: float | None = None


class CheckpointWriter:
    """Writes this rank's part of checkpoints; on rank 0, publishes them and applies retention."""

    def __init__(
        self,
        run_directory: Path,
        *,
        attempt: int,
        rank: int,
        world_size: int,
        keep_last: int,
        before_publish: Callable[[], None] = lambda: None,
        on_saved: Callable[[dict[str, Any]], None] = lambda event: None,
        other_ranks_timeout_seconds: float = 1800.0,
    ) -> None:
        self._run_directory = run_directory
        self._attempt = attempt
        self._rank = rank
        self._world_size = world_size
        self._keep_last = keep_last
        self._before_publish = before_publish
        self._on_saved = on_saved
        self._timeout_seconds = other_ranks_timeout_seconds
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, states: Sequence[FragmentState], run: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint from host copies; returns once an earlier one is done.

        Args:
            step: Steps made so far.
            states: `Engine.snapshot()` of this rank.
            run: The manifest's `run` part; used on rank 0.

        Raises:
            StorageError: An earlier checkpoint could not be written.
        """
        self.wait()
        save = self._save = _Save(step, states, run, threading.Event())
        self._thread = threading.Thread(target=self._work, args=(save,), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def next_loss(self, loss: float | None) -> None:
        """Hand in the loss of the batch after the checkpoint in flight, which is published with it."""
        if self._save is not None and not self._save.next_loss_known.is_set():
            self._save.next_loss = loss
            self._save.next_loss_known.set()

    @property
    def awaits_next_loss(self) -> bool:
        """Whether a checkpoint in flight still lacks the loss of the next batch."""
        return self._save is not None and not self._save.next_loss_known.is_set()

    def wait(self) -> None:
        """Wait for the checkpoint in flight; one without a next loss is published without.

        Raises:
            StorageError: It could not be written.
        """
        self.next_loss(None)
        if self._thread is not None:
            self._thread.join()
        self._thread = self._save = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise what went wrong in the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def _work(self, save: _Save) -> None:
        directory = step_directory(self._run_directory, save.step) / attempt_name(self._attempt)
        try:
            self._write_rank(directory, save.states)
            save.states = ()
            if self._rank == 0:
                self._publish(directory, save)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the storage is full" if full else f"{error.strerror or error}"
            self._error = StorageError(
                f"checkpoint of step {save.step} could not be written to {directory}: {what}. Earlier checkpoints are "
                "whole. Make room (or lower checkpoint.keep_last) and give the same command again."
            )
            self._error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - kept for the training thread, which raises it
            self._error = error

    def _write_rank(self, directory: Path, states: Sequence[FragmentState]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self._rank:05d}"
        path = directory / f"{name}.safetensors"
        tensors: dict[str, torch.Tensor] = {
            tensor_key(state, held.fragment.name): tensor for held in states for state, tensor in held.tensors.items()
        }
        save_file(tensors, path)
        sync_file(path)
        hashes = file_hashes(path)
        relative = f"{directory.name}/{path.name}"
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
            for held in states
        ]
        write_atomically(directory / f"{name}.json", seal({"file": asdict(record), "pieces": pieces}))

    def _publish(self, directory: Path, save: _Save) -> None:
        parts = self._collect(directory)
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
        sync_directory(directory)
        self._before_publish()
        (directory.parent / catalog.REJECTED_NAME).unlink(missing_ok=True)
        write_atomically(directory.parent / MANIFEST_NAME, manifest.to_bytes())
        self._apply_retention()
        self._on_saved({"event": "checkpoint_saved", "step": save.step, "bytes": manifest.size_bytes})

    def _collect(self, directory: Path) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_seconds
        parts = []
        for rank in range(self._world_size):
            path = directory / f"rank-{rank:05d}.json"
            while not path.exists():
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"rank {rank} did not hand in its part of {directory} within {self._timeout_seconds:.0f} s; "
                        "the checkpoint was not published."
                    )
                time.sleep(_POLL_SECONDS)
            parts.append(unseal(path.read_bytes(), str(path)))
        return parts

    def _apply_retention(self) -> None:
        infos = catalog.list_checkpoints(self._run_directory)
        usable = {info.step: info for info in infos if info.problem is None}
        for step in catalog.steps_to_delete(list(usable), self._keep_last):
            catalog.delete(usable[step].directory)
