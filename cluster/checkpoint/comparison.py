"""Two checkpoints side by side: what they were trained with, and every tensor, bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cluster.checkpoint.catalog import CheckpointInfo
from cluster.checkpoint.inspection import chunks, elements
from cluster.checkpoint.manifest import FileRecord, Manifest
from cluster.checkpoint.reader import CheckpointReader
from cluster.resume import Change, changes, completed

_IDENTITY = ("name", "storage")
"""Keys of the configuration that say which run it is, and nothing of what it does."""
_RUN_KEYS = ("data_position", "skip_ledger", "data_plan", "layout")


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How one state of one parameter differs; both figures are inf where a value is not finite in one of them."""

    parameter: str
    state: str
    largest_absolute: float
    """Largest |a - b|."""
    largest_relative: float
    """Largest |a - b| / max(|a|, |b|)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs between two checkpoints; nothing where all is empty."""

    facts: tuple[Change, ...]
    """Step, next batch's loss, configuration, data plan and layout, as dotted keys."""
    structure: tuple[str, ...]
    """Parameters and states that only one of them holds, or in another shape; in words."""
    scalars: tuple[Change, ...]
    """Scalar optimizer states, as STATE:PARAMETER."""
    tensors: tuple[TensorDifference, ...]
    compared: Mapping[str, int]
    """Tensors compared, by state."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.facts or self.structure or self.scalars or self.tensors)


def differing_facts(first: Manifest, second: Manifest) -> list[Change]:
    """What the manifests say differently, the time and number of the attempt and the names of the runs left out."""
    before, after = (_facts(manifest) for manifest in (first, second))
    return changes(before, after)


def files_to_read(first: Manifest, second: Manifest) -> tuple[list[FileRecord], list[FileRecord]]:
    """The files of each whose contents must be read to compare them: none of those that both have alike."""
    wanted = [name for name in _common(first, second) if not _same_bytes(first, second, name)]
    return _files_of(first, wanted), _files_of(second, wanted)


def bytes_to_compare(first: Manifest, second: Manifest) -> int:
    """Bytes of tensors that will be read from each of the two."""
    wanted = [name for name in _common(first, second) if not _same_bytes(first, second, name)]
    return sum(elements(first, name) * len(_common_states(first, second, name)) for name in wanted) * 4


def compare(first: CheckpointInfo, second: CheckpointInfo, progress: Callable[[int], None]) -> Comparison:
    """Compare two checkpoints whose files were verified.

    Two parts of tensors are held at a time. What lies in files of the same hash at the same place is not read.

    Args:
        first: One checkpoint.
        second: The other.
        progress: Called with the bytes of each part that was compared.
    """
    a, b = first.manifest, second.manifest
    assert a is not None
    assert b is not None
    readers = CheckpointReader(first.directory, a), CheckpointReader(second.directory, b)
    tensors = []
    compared: Counter[str] = Counter()
    for name in _common(a, b):
        states = _common_states(a, b, name)
        compared.update(states)
        for state in () if _same_bytes(a, b, name) else states:
            found = _largest_differences(
                zip(chunks(readers[0], a, name, state), chunks(readers[1], b, name, state), strict=True), progress
            )
            if found is not None:
                tensors.append(
                    TensorDifference(parameter=name, state=state, largest_absolute=found[0], largest_relative=found[1])
                )
    return Comparison(
        facts=tuple(differing_facts(a, b)),
        structure=tuple(_structure(a, b)),
        scalars=tuple(changes(_scalars(a, b), _scalars(b, a))),
        tensors=tuple(tensors),
        compared=dict(sorted(compared.items())),
    )


def _largest_differences(pairs: Any, progress: Callable[[int], None]) -> tuple[float, float] | None:
    """Largest absolute and relative difference over pairs of parts; None where they are equal bit for bit."""
    absolute = relative = 0.0
    equal = True
    for one, other in pairs:
        if not torch.equal(one.view(torch.int32), other.view(torch.int32)):
            equal = False
            odd = ~(torch.isfinite(one) & torch.isfinite(other)) & (one.view(torch.int32) != other.view(torch.int32))
            distance = torch.nan_to_num(one - other, nan=0.0, posinf=0.0, neginf=0.0).abs().double()
            scale = torch.maximum(one.abs(), other.abs()).double()
            ratio = torch.where((distance > 0) & torch.isfinite(scale), distance / scale, 0.0)
            absolute = math.inf if bool(odd.any()) else max(absolute, float(distance.max()))
            relative = math.inf if bool(odd.any()) else max(relative, float(ratio.max()))
        progress(one.nbytes)
    return None if equal else (absolute, relative)


def _common(first: Manifest, second: Manifest) -> list[str]:
    """Parameters that both hold in the same shape."""
    return [
        name
        for name, pieces in first.pieces.items()
        if name in second.pieces and second.pieces[name][0].shape == pieces[0].shape
    ]


def _common_states(first: Manifest, second: Manifest, name: str) -> list[str]:
    return [state for state in first.pieces[name][0].states if state in second.pieces[name][0].states]


def _same_bytes(first: Manifest, second: Manifest, name: str) -> bool:
    """Whether a parameter lies at the same places of files with the same hashes."""
    places = []
    for manifest in (first, second):
        hashes = {file.path: (file.size_bytes, file.hash) for file in manifest.files}
        places.append([(piece.offset, piece.length, hashes[piece.file]) for piece in manifest.pieces[name]])
    return places[0] == places[1]


def _files_of(manifest: Manifest, names: list[str]) -> list[FileRecord]:
    paths = {piece.file for name in names for piece in manifest.pieces[name]}
    return [file for file in manifest.files if file.path in paths]


def _structure(first: Manifest, second: Manifest) -> list[str]:
    found = []
    for mine, theirs, label in ((first, second, "first"), (second, first, "second")):
        found += [f"parameter {name} is only in the {label}" for name in mine.pieces if name not in theirs.pieces]
        for name in _common(mine, theirs):
            only = [state for state in mine.pieces[name][0].states if state not in theirs.pieces[name][0].states]
            found += [f"{state} of {name} is only in the {label}" for state in only]
    for name, pieces in first.pieces.items():
        other = second.pieces.get(name)
        if other is not None and other[0].shape != pieces[0].shape:
            found.append(f"parameter {name} has shape {list(pieces[0].shape)} and {list(other[0].shape)}")
        elif other is not None and other[0].group != pieces[0].group:
            found.append(f"parameter {name} is in group {pieces[0].group} and {other[0].group}")
    return found


def _scalars(manifest: Manifest, other: Manifest) -> dict[str, float]:
    return {
        f"{state}:{name}": value
        for name in _common(manifest, other)
        for state, value in manifest.pieces[name][0].scalars.items()
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    config = manifest.run.get("config")
    known = completed(config) if config else {}
    return {
        "step": manifest.step,
        "next_batch_loss": manifest.next_batch_loss,
        "config": {key: value for key, value in known.items() if key not in _IDENTITY},
        **{key: manifest.run.get(key) for key in _RUN_KEYS},
    }
