"""Reading any fragment out of a checkpoint, whatever topology wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cluster.checkpoint.manifest import Manifest, Piece, tensor_key
from cluster.engine import MASTER, Fragment
from cluster.errors import CheckpointError


class CheckpointReader:
    """A `StateSource` over a checkpoint's files: takes from each just the ranges that overlap a fragment."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._open: dict[str, safe_open] = {}

    def scalars(self, name: str) -> Mapping[str, float]:
        """Scalar optimizer states of a parameter, equal in all its pieces."""
        return self._pieces(name)[0].scalars

    def tensor_names(self) -> Sequence[str]:
        """Tensor states besides the master."""
        return tuple(name for name in self._manifest.state_names if name != MASTER)

    def parameter_names(self) -> Sequence[str]:
        """All parameters, in the checkpoint's order."""
        return tuple(self._manifest.pieces)

    def whole(self, name: str, state: str = MASTER) -> torch.Tensor:
        """A parameter's master (or another state) in its own shape, fp32 on the CPU."""
        piece = self._pieces(name)[0]
        fragment = Fragment(name, piece.group, piece.shape, 0, _numel(piece.shape))
        return self.read(fragment, state).reshape(piece.shape)

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """fp32 CPU tensor of the fragment's elements.

        Raises:
            CheckpointError: The parameter is absent, has another shape, or its pieces leave a gap.
        """
        pieces = self._pieces(fragment.name)
        if pieces[0].shape != fragment.shape:
            raise CheckpointError(
                f"checkpoint {self._directory} holds {fragment.name} with shape {list(pieces[0].shape)}, and the model "
                f"has {list(fragment.shape)}. A checkpoint continues only the model that wrote it: restore the model's "
                "configuration, or begin anew with --fresh."
            )
        result = torch.empty(fragment.length, dtype=torch.float32)
        stop = fragment.offset + fragment.length
        filled = 0
        for piece in pieces:
            low, high = max(fragment.offset, piece.offset), min(stop, piece.offset + piece.length)
            if low < high:
                values = self._slice(piece, tensor_key(state, fragment.name), low - piece.offset, high - piece.offset)
                result[low - fragment.offset : high - fragment.offset] = values
                filled += high - low
        if filled != fragment.length:
            raise CheckpointError(
                f"checkpoint {self._directory} holds {filled} of the {fragment.length} elements of {fragment.name} "
                f"({state}) from {fragment.offset} on: its pieces must cover every parameter once."
            )
        return result

    def _pieces(self, name: str) -> tuple[Piece, ...]:
        try:
            return self._manifest.pieces[name]
        except KeyError as error:
            raise CheckpointError(
                f"checkpoint {self._directory} has no parameter {name!r}: it was written by another model. Restore the "
                "model's configuration, or begin anew with --fresh."
            ) from error

    def _slice(self, piece: Piece, key: str, start: int, stop: int) -> torch.Tensor:
        path = self._directory / piece.file
        try:
            if piece.file not in self._open:
                self._open[piece.file] = safe_open(path, framework="pt", device="cpu")
            values: torch.Tensor = self._open[piece.file].get_slice(key)[start:stop]  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint file {path} cannot be read at {key}: {error}") from error
        return values


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
