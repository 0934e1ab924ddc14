"""What a checkpoint consists of, as JSON: the manifest that makes it exist, and the part that each rank hands in.

    checkpoints/step-00000100/attempt-00001/rank-00000.safetensors   masters and optimizer states of one rank
    checkpoints/step-00000100/attempt-00001/rank-00000.json          its index, size and hashes; written after it
    checkpoints/step-00000100/MANIFEST.json                          all of that and the run's state; written last

Tensors are flat fp32 slices named `STATE:PARAMETER`, STATE being `master` or the optimizer's own name for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.checkpoint.reach import explain
from cluster.errors import CheckpointDamagedError, CheckpointError
from cluster.storage.operations import StoragePath
from cluster.storage.retry import retried
from data_pipeline.errors import DataError
from data_pipeline.publish import seal, unseal

SCHEMA_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint: path relative to the step's directory, size and hashes of every block."""

    path: str
    size_bytes: int
    hash: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A fragment in a file: elements [offset, offset + length) of one parameter, with its scalar optimizer states."""

    group: str
    shape: tuple[int, ...]
    offset: int
    length: int
    file: str
    scalars: Mapping[str, float]
    states: tuple[str, ...]
    """Tensors of the fragment in the file: the master, and what the optimizer keeps for this parameter."""

    def stored_name(self, parameter: str) -> str:
        """Name of its parameter in the file."""
        return parameter


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole checkpoint.

    `run` holds what the run needs to go on: data position, skip ledger, layout, fingerprints, configuration, W&B id.
    `next_batch_loss` is the loss of the next global batch under these parameters; null when there is no next batch.
    """

    step: int
    attempt: int
    created_unix_seconds: float
    next_batch_loss: float | None
    run: Mapping[str, Any]
    state_names: tuple[str, ...]
    pieces: Mapping[str, tuple[Piece, ...]]
    files: tuple[FileRecord, ...]

    def to_bytes(self) -> bytes:
        """Sealed JSON."""
        return seal({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: StoragePath) -> Manifest:
        """Read and check a manifest.

        Raises:
            CheckpointDamagedError: It is absent, torn or altered.
            CheckpointUnreadableError: It cannot be read here and now.
            CheckpointError: It is of an unknown version.
        """
        try:
            data = retried(path.read_bytes, f"reading {path}")
        except OSError as error:
            raise explain(path, error, root=path.parent) from error
        try:
            document = unseal(data, str(path))
            spelling = seal(document)
        except (DataError, ValueError, RecursionError) as error:
            raise CheckpointDamagedError(f"checkpoint manifest {path} cannot be used: {error}") from error
        if spelling != data:  # another spelling of the same values, which the checksum does not see
            raise CheckpointDamagedError(
                f"checkpoint manifest {path} cannot be used: its bytes are not those that were written. Restore it "
                "from a copy."
            )
        if document.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"checkpoint manifest {path} has schema version {document.get('schema_version')}; this release reads "
                f"version {SCHEMA_VERSION}. Use the release that wrote it."
            )
        return cls(
            step=document["step"],
            attempt=document["attempt"],
            created_unix_seconds=document["created_unix_seconds"],
            next_batch_loss=document["next_batch_loss"],
            run=document["run"],
            state_names=tuple(document["state_names"]),
            pieces={
                name: tuple(piece_from_json({"states": document["state_names"], **piece}) for piece in pieces)
                for name, pieces in document["pieces"].items()
            },
            files=tuple(map(file_from_json, document["files"])),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor files."""
        return sum(file.size_bytes for file in self.files)


def piece_from_json(document: Mapping[str, Any]) -> Piece:
    """A piece from its JSON form."""
    return Piece(**{**document, "shape": tuple(document["shape"]), "states": tuple(document["states"])})


def file_from_json(document: Mapping[str, Any]) -> FileRecord:
    """A file record from its JSON form."""
    return FileRecord(**{**document, "blocks": tuple(document["blocks"])})


def step_directory(run_directory: StoragePath, step: int) -> StoragePath:
    """Directory of one step's checkpoint."""
    return run_directory / "checkpoints" / f"step-{step:08d}"


def attempt_name(attempt: int) -> str:
    """Directory of one attempt's files within a step's."""
    return f"attempt-{attempt:05d}"


def tensor_key(state: str, parameter: str) -> str:
    """Name of a tensor within a rank's file."""
    return f"{state}:{parameter}"
