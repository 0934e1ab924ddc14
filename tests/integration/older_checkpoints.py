"""Checkpoints as they were before queries, keys and values, and gate and up projections, became one parameter each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.checkpoint import CheckpointReader, CheckpointWriter, WriterHooks, find_checkpoint
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment, FragmentState

_PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def held_in(directory: Path, step: int) -> list[FragmentState]:
    """All that a checkpoint holds, parameter by parameter."""
    info = find_checkpoint(directory, step)
    assert info.manifest is not None
    reader = CheckpointReader(info.directory, info.manifest)
    states = []
    for name, (piece, *_) in info.manifest.pieces.items():
        tensors = {state: reader.whole(name, state).flatten() for state in (MASTER, *reader.tensor_names(name))}
        fragment = Fragment(name, piece.group, piece.shape, 0, tensors[MASTER].numel())
        states.append(FragmentState(fragment, tensors, dict(piece.scalars)))
    return states


def separate(states: Sequence[FragmentState], rows: Mapping[str, tuple[int, ...]]) -> list[FragmentState]:
    """Whole parameters under the older names.

    Args:
        states: Whole parameters as they are named now.
        rows: Of each part of `qkv_proj` and of `gate_up_proj`.
    """
    found = []
    for held in states:
        module, _, kind = held.fragment.name.rpartition(".")
        owner, _, layer = module.rpartition(".")
        if layer not in _PARTS:
            found.append(held)
            continue
        split = {
            name: torch.split(tensor.view(held.fragment.shape), rows[layer]) for name, tensor in held.tensors.items()
        }
        for place, part in enumerate(_PARTS[layer]):
            tensors = {name: parts[place].flatten() for name, parts in split.items()}
            shape = tuple(split[MASTER][place].shape)
            fragment = Fragment(f"{owner}.{part}.{kind}", held.fragment.group, shape, 0, tensors[MASTER].numel())
            found.append(FragmentState(fragment, tensors, held.scalars))
    return found


def write(
    directory: Path,
    step: int,
    states: Sequence[FragmentState],
    run: Mapping[str, Any],
    *,
    ranks: int = 1,
    next_loss: float | None = None,
) -> None:
    """Write whole parameters as so many ranks would, each an equal share of every one."""
    writers = [
        CheckpointWriter(
            directory,
            attempt=1,
            rank=rank,
            world_size=ranks,
            policy=CheckpointConfig(keep_last=3),
            hooks=WriterHooks(),
        )
        for rank in range(ranks)
    ]
    for rank, writer in enumerate(writers):
        writer.save(step, [_share(held, rank, ranks) for held in states], dict(run))
    for writer in writers:
        if next_loss is not None:
            writer.next_loss(next_loss)
    for writer in reversed(writers):
        writer.finish()


def _share(held: FragmentState, rank: int, ranks: int) -> FragmentState:
    whole = held.fragment
    begin, end = (whole.length * place // ranks for place in (rank, rank + 1))
    fragment = Fragment(whole.name, whole.group, whole.shape, begin, end - begin)
    tensors = {name: tensor[begin:end].clone() for name, tensor in held.tensors.items()}
    return FragmentState(fragment, tensors, held.scalars)
