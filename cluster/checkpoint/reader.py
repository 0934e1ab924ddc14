"""Reading any fragment out of a checkpoint, whatever topology wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch

from cluster.checkpoint.manifest import Manifest, Piece, tensor_key
from cluster.checkpoint.older_names import pieces_from_parts
from cluster.checkpoint.rank_file import RankFile
from cluster.checkpoint.reach import explain
from cluster.engines.protocol import MASTER, Fragment
from cluster.errors import CheckpointError
from cluster.storage.operations import StoragePath
from cluster.storage.retry import retried
from cluster.storage.source import ReadAhead

CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Elements of a tensor of another device or kind that are held in host memory at a time: 16 MiB of fp32."""


class CheckpointReader:
    """A `StateSource` over a checkpoint's files: takes from each just the ranges that overlap a fragment.

    Args:
        directory: The checkpoint.
        manifest: Its manifest.
        path: Where to read a file that the manifest names; in `directory` where None.
    """

    def __init__(
        self, directory: StoragePath, manifest: Manifest, path: Callable[[str], StoragePath] | None = None
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._path = path if path is not None else directory.joinpath
        self._open: dict[str, RankFile] = {}
        self._ahead = ReadAhead()

    def scalars(self, name: str) -> Mapping[str, float]:
        """Scalar optimizer states of a parameter, equal in all its pieces."""
        return self._pieces(name)[0].scalars

    def tensor_names(self, name: str) -> Sequence[str]:
        """Tensor states of a parameter besides the master; optimizers may keep others for others."""
        return tuple(state for state in self._pieces(name)[0].states if state != MASTER)

    def parameter_names(self) -> Sequence[str]:
        """All parameters, in the checkpoint's order."""
        return tuple(self._manifest.pieces)

    def whole(self, name: str, state: str = MASTER) -> torch.Tensor:
        """A parameter's master (or another state) in its own shape, fp32 on the CPU."""
        piece = self._pieces(name)[0]
        fragment = Fragment(name, piece.group, piece.shape, 0, math.prod(piece.shape))
        return self.read(fragment, state).reshape(piece.shape)

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """fp32 CPU tensor of the fragment's elements.

        Raises:
            CheckpointError: The parameter is absent, has another shape, or its pieces leave a gap.
            CheckpointDamagedError: A file is not what was written.
            CheckpointUnreadableError: A file cannot be read here and now.
        """
        target = torch.empty(fragment.length, dtype=torch.float32)
        self.read_into(fragment, state, target)
        return target

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a one-dimensional tensor to the fragment's elements, without a copy where it is fp32 on the CPU.

        Raises:
            CheckpointError: As `read`.
        """
        pieces = self._pieces(fragment.name)
        if pieces[0].shape != fragment.shape:
            raise CheckpointError(
                f"checkpoint {self._directory} holds {fragment.name} with shape {list(pieces[0].shape)}, and the model "
                f"has {list(fragment.shape)}. A checkpoint continues only the model that wrote it: restore the model's "
                "configuration, or begin anew with --fresh."
            )
        stop = fragment.offset + fragment.length
        filled = 0
        for piece in pieces:
            low, high = max(fragment.offset, piece.offset), min(stop, piece.offset + piece.length)
            if low < high:
                part = target[low - fragment.offset : high - fragment.offset]
                self._fill(part, piece, tensor_key(state, piece.stored_name(fragment.name)), low - piece.offset)
                filled += high - low
        if filled != fragment.length:
            raise CheckpointError(
                f"checkpoint {self._directory} holds {filled} of the {fragment.length} elements of {fragment.name} "
                f"({state}) from {fragment.offset} on: its pieces must cover every parameter once."
            )

    @cached_property
    def _from_parts(self) -> Mapping[str, tuple[Piece, ...]]:
        return pieces_from_parts(self._manifest)

    def _pieces(self, name: str) -> tuple[Piece, ...]:
        try:
            return self._manifest.pieces[name] if name in self._manifest.pieces else self._from_parts[name]
        except KeyError as error:
            raise CheckpointError(
                f"checkpoint {self._directory} has no parameter {name!r}: it was written by another model. Restore the "
                "model's configuration, or begin anew with --fresh."
            ) from error

    def _fill(self, target: torch.Tensor, piece: Piece, key: str, start: int) -> None:
        if target.device.type != "cpu" or target.dtype != torch.float32 or not target.is_contiguous():
            for first in range(0, len(target), CHUNK_ELEMENTS):
                chunk = torch.empty(min(CHUNK_ELEMENTS, len(target) - first), dtype=torch.float32)
                self._fill(chunk, piece, key, start + first)
                target[first : first + len(chunk)].copy_(chunk)
            return
        try:
            retried(partial(self._try_to_fill, target, piece, key, start), f"reading {piece.file} at {key}")
        except OSError as error:
            raise explain(self._directory / piece.file, error, root=self._directory) from error

    def _try_to_fill(self, target: torch.Tensor, piece: Piece, key: str, start: int) -> None:
        if piece.file not in self._open:
            self._open[piece.file] = RankFile(self._path(piece.file), self._ahead)
        try:
            self._open[piece.file].read_into(key, start, target)
        except OSError:
            del self._open[piece.file]  # a stale handle does not recover: the next try opens the file anew
            raise
