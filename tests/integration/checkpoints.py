"""Small checkpoints of one parameter, as several ranks would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.checkpoint import CheckpointWriter
from cluster.config import CheckpointConfig
from cluster.engines.protocol import MASTER, Fragment, FragmentState

SHAPE = (7, 5)
WHOLE = torch.arange(35, dtype=torch.float32)


def states(offset: int, length: int, shift: float = 0.0) -> list[FragmentState]:
    """One rank's part of one parameter."""
    values = WHOLE[offset : offset + length] + shift
    fragment = Fragment("weight", "decay", SHAPE, offset, length)
    return [FragmentState(fragment, {MASTER: values, "exp_avg": values * 2}, {"step": 3.0})]


def save(
    directory: Path,
    step: int,
    *,
    cuts: tuple[int, ...] = (0, 12, 35),
    policy: CheckpointConfig | None = None,
    shift: float = 0.0,
    attempt: int = 1,
    **options: Any,
) -> None:
    """Save as several ranks would, each owning the elements between two cuts."""
    world = len(cuts) - 1
    writers = [
        CheckpointWriter(
            directory, attempt=attempt, rank=rank, world_size=world, policy=policy or CheckpointConfig(), **options
        )
        for rank in range(world)
    ]
    for rank, part in enumerate(writers):
        part.save(step, states(cuts[rank], cuts[rank + 1] - cuts[rank], shift), {"seed": 1})
    for part in writers:
        part.next_loss(2.5)
    for part in reversed(writers):
        part.finish()
