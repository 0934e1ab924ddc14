"""What one rank hands in for a checkpoint: its file of tensors, then an index that says what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from cluster.checkpoint.manifest import FileRecord, Manifest, Piece, file_from_json, piece_from_json, tensor_key
from cluster.checkpoint.rank_file import write_rank_file
from cluster.engines.protocol import FragmentState
from cluster.storage.operations import StoragePath
from data_pipeline.publish import seal, unseal


def tensors_path(directory: StoragePath, rank: int) -> StoragePath:
    """A rank's file of tensors."""
    return directory / f"rank-{rank:05d}.safetensors"


def index_path(directory: StoragePath, rank: int) -> StoragePath:
    """A rank's index; it exists once the tensors are durable."""
    return directory / f"rank-{rank:05d}.json"


def size_bytes(states: Sequence[FragmentState]) -> int:
    """Bytes of the tensors of these states."""
    return sum(tensor.nbytes for held in states for tensor in held.tensors.values())


def write_tensors(
    path: StoragePath, states: Sequence[FragmentState], also: Callable[[memoryview], None] = lambda block: None
) -> FileRecord:
    """Write the tensors of a rank.

    Args:
        path: The file, in the directory of an attempt.
        states: What the rank owns.
        also: Sees every block of bytes once it is written, in order.

    Raises:
        OSError: The file could not be written.
    """
    tensors: dict[str, torch.Tensor] = {
        tensor_key(state, held.fragment.name): tensor.contiguous()
        for held in states
        for state, tensor in held.tensors.items()
    }
    hashes = write_rank_file(path, tensors, also)
    return FileRecord(f"{path.parent.name}/{path.name}", hashes.size_bytes, hashes.hash, hashes.blocks)


def describe(record: FileRecord, states: Sequence[FragmentState]) -> bytes:
    """The index of a rank, sealed."""
    pieces = [
        {
            "name": held.fragment.name,
            **asdict(
                Piece(
                    group=held.fragment.group,
                    shape=held.fragment.shape,
                    offset=held.fragment.offset,
                    length=held.fragment.length,
                    file=record.path,
                    scalars=held.scalars,
                    states=tuple(sorted(held.tensors)),
                )
            ),
        }
        for held in states
    ]
    return seal({"file": asdict(record), "pieces": pieces})


def read_index(path: StoragePath) -> dict[str, Any]:
    """What a rank has handed in.

    Raises:
        SealError: It was altered since.
    """
    return unseal(path.read_bytes(), str(path))


def assemble(
    parts: Sequence[Mapping[str, Any]],
    *,
    step: int,
    attempt: int,
    created_unix_seconds: float,
    next_batch_loss: float | None,
    run: Mapping[str, Any],
) -> Manifest:
    """The manifest of a checkpoint whose parts have all been handed in.

    Args:
        parts: Indexes by rank.
        step: Steps made.
        attempt: The attempt that wrote them.
        created_unix_seconds: Time of publication.
        next_batch_loss: Loss of the batch after the step.
        run: What the run needs to go on.
    """
    pieces: dict[str, list[Piece]] = {}
    states: set[str] = set()
    for part in parts:
        for item in part["pieces"]:
            states.update(item["states"])
            fields = {key: value for key, value in item.items() if key != "name"}
            pieces.setdefault(item["name"], []).append(piece_from_json(fields))
    return Manifest(
        step=step,
        attempt=attempt,
        created_unix_seconds=created_unix_seconds,
        next_batch_loss=next_batch_loss,
        run=run,
        state_names=tuple(sorted(states)),
        pieces={name: tuple(sorted(held, key=lambda piece: piece.offset)) for name, held in pieces.items()},
        files=tuple(file_from_json(part["file"]) for part in parts),
    )
