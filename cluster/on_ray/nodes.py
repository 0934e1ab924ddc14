"""What the driver asks of the nodes of a Ray cluster and of the actors on them, and how it reaches them."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from cluster.faults.inquest import NodeState
from cluster.on_ray.room import draining_nodes

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 2.0
_NODE_SECONDS = 10.0
"""How long a node may take to start a process and look at its workers."""


def actor_is_dead(actor_id: str) -> bool:
    """Whether the process of an actor has ended."""
    from ray._private.state import actors

    return bool(actors(actor_id).get("State") == "DEAD")


def node_state_now(node_id: str) -> NodeState:
    """How a node stands now."""
    import ray

    facts = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    alive = facts is not None and facts["Alive"] and _answers(facts["NodeManagerAddress"], facts["NodeManagerPort"])
    return NodeState(alive=alive, draining=node_id in draining_nodes())


def _answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=_PROBE_SECONDS):
        return True
    return False


def on_nodes(function: Callable[[Any], Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call a function on nodes at once, as tasks that take none of their CPUs."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    calls = {}
    for node_id, argument in arguments.items():
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        calls[task.remote(argument)] = node_id
    done, late = ray.wait(list(calls), num_returns=len(calls), timeout=_NODE_SECONDS)
    answers = {}
    for call in done:
        try:
            answers[calls[call]] = ray.get(call)
        except RayError as error:
            logger.warning("node %s could not be asked about its workers: %s", calls[call], error)
    for call in late:
        ray.cancel(call, force=True)
    return answers
