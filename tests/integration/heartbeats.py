"""Heartbeats of ranks that no process sends."""

from __future__ import annotations

from typing import Any

from cluster.faults.hang import Heartbeat


def beat_of(rank: int, *, world_size: int = 2, **changes: Any) -> Heartbeat:
    """A rank that moves, on a node of its own."""
    fields: dict[str, Any] = {
        "node": f"10.0.0.{rank}",
        "node_id": f"node-{rank}",
        "pid": 100 + rank,
        "started_ticks": 7,
        "stacks_fd": 3,
        "step": 5,
        "still_seconds": 0.0,
        "collective": None,
    }
    return Heartbeat(rank=rank, world_size=world_size, **fields | changes)
