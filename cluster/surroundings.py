"""What an attempt is given besides its configuration: the engine's maker, the way to the driver, tracking."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.batches import RankBatch, micro_batch_count
from cluster.config import RunConfig
from cluster.engines.protocol import Engine
from cluster.evaluation.beside import Outcome
from cluster.record.wandb_mirror import TrackingSettings
from cluster.topology import Layout, Topology
from cluster.train_loop import Regroup
from llm.config import ModelConfig


class DriverLink(Protocol):
    """The way from a worker to the driver."""

    def post(self, message: dict[str, Any]) -> None:
        """Send a message; never waits."""

    def stop_requested(self) -> bool:
        """Whether the driver wants the run to save and end."""

    def regroup_requested(self) -> Regroup:
        """Whether the driver wants to put the workers together anew: at the next checkpoint, or with one now."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an engine is built from."""

    model: ModelConfig
    config: RunConfig
    layout: Layout
    topology: Topology

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank in the largest steps; the loop tells the engine where a step has fewer."""
        sizes = self.config.train
        return micro_batch_count(sizes.global_batch_size, self.topology.world_size, sizes.micro_batch_size)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What an attempt is given besides its configuration."""

    build_engine: Callable[[EngineRequest], Engine]
    zero_stage: int | None
    """Stage the engine works at; None for plain torch."""
    link: DriverLink
    tracking: TrackingSettings
    observe: Callable[[RankBatch], None] = lambda batch: None
    """Sees every batch of this rank before it is computed."""
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    evaluations: Callable[[], Sequence[Outcome]] = tuple
    """What has come of evaluations beside the training, in the order of their steps; rank 0 only."""
    still_ours: Callable[[], bool] = lambda: True
    """Whether the driver of this attempt still holds the run's lease."""
