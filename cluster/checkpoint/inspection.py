"""What a checkpoint holds, as plain values: from its manifest alone, and figures of its tensors on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cluster.checkpoint.catalog import CheckpointInfo
from cluster.checkpoint.manifest import Manifest
from cluster.checkpoint.reader import CHUNK_ELEMENTS, CheckpointReader
from cluster.engines.protocol import Fragment
from cluster.errors import CheckpointError

_FLOAT_BYTES = 4


def describe(info: CheckpointInfo) -> dict[str, Any]:
    """Facts of a checkpoint, without reading its tensors.

    Raises:
        CheckpointError: Its manifest cannot be read.
    """
    manifest = info.manifest
    if manifest is None:
        raise CheckpointError(info.problem or f"checkpoint {info.directory} has no manifest.")
    run = manifest.run
    layout = run.get("layout", {})
    return {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "directory": str(info.directory),
        "problem": info.problem,
        "created_unix_seconds": manifest.created_unix_seconds,
        "next_batch_loss": manifest.next_batch_loss,
        "size_bytes": manifest.size_bytes,
        "data_position": run.get("data_position"),
        "skip_ledger": run.get("skip_ledger"),
        "data_plan_fingerprint": run.get("data_plan_fingerprint"),
        "wandb_id": run.get("wandb_id"),
        "precision": layout.get("precision"),
        "layout": dict(layout),
        "states": list(manifest.state_names),
        "groups": _groups(manifest),
        "parameters": [_parameter(manifest, name) for name in manifest.pieces],
        "files": [{"path": file.path, "size_bytes": file.size_bytes, "hash": file.hash} for file in manifest.files],
    }


def elements(manifest: Manifest, name: str) -> int:
    """Elements of a parameter."""
    return math.prod(manifest.pieces[name][0].shape)


def tensor_bytes(manifest: Manifest) -> int:
    """Bytes of all tensors of a checkpoint, as fp32."""
    return (
        sum(elements(manifest, name) * len(pieces[0].states) for name, pieces in manifest.pieces.items()) * _FLOAT_BYTES
    )


def chunks(reader: CheckpointReader, manifest: Manifest, name: str, state: str) -> Iterator[torch.Tensor]:
    """A tensor in parts of at most CHUNK_ELEMENTS, flat fp32 on the CPU."""
    piece, total = manifest.pieces[name][0], elements(manifest, name)
    for offset in range(0, total, CHUNK_ELEMENTS):
        length = min(CHUNK_ELEMENTS, total - offset)
        yield reader.read(Fragment(name, piece.group, piece.shape, offset, length), state)


def value_figures(
    reader: CheckpointReader, manifest: Manifest, name: str, state: str, progress: Callable[[int], None]
) -> dict[str, float | int | None]:
    """Smallest and largest finite value, 2-norm of the finite ones, and how many are not finite.

    Args:
        reader: Of the checkpoint.
        manifest: Its manifest.
        name: Parameter.
        state: `master` or an optimizer state.
        progress: Called with the bytes of each part that was read.
    """
    smallest, largest, squares, odd = math.inf, -math.inf, 0.0, 0
    for values in chunks(reader, manifest, name, state):
        finite = values[torch.isfinite(values)]
        odd += values.numel() - finite.numel()
        if finite.numel():
            smallest, largest = min(smallest, float(finite.min())), max(largest, float(finite.max()))
            squares += float(torch.linalg.vector_norm(finite, dtype=torch.float64)) ** 2
        progress(values.nbytes)
    known = smallest <= largest
    return {
        "min": smallest if known else None,
        "max": largest if known else None,
        "norm": math.sqrt(squares),
        "not_finite": odd,
    }


def _parameter(manifest: Manifest, name: str) -> dict[str, Any]:
    pieces = manifest.pieces[name]
    return {
        "name": name,
        "group": pieces[0].group,
        "shape": list(pieces[0].shape),
        "elements": elements(manifest, name),
        "states": list(pieces[0].states),
        "pieces": len(pieces),
        "scalars": dict(pieces[0].scalars),
    }


def _groups(manifest: Manifest) -> Mapping[str, Mapping[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for name, pieces in manifest.pieces.items():
        group = groups.setdefault(pieces[0].group, {"parameters": 0, "elements": 0})
        group["parameters"] += 1
        group["elements"] += elements(manifest, name)
    return groups
