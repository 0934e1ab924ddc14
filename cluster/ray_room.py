"""Room for workers: how many fit on the nodes now, which nodes the platform takes back, how many a run starts with."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from cluster.config import ResourcesConfig
from cluster.ray_cluster import live_nodes, room_for_workers

NODE_GRACE_SECONDS = 10.0
"""How long a run that may go on with fewer workers waits for a lost node to come back. A supervisor starts a raylet
that died again within seconds; waiting longer costs the time of all other workers, and a late node is taken at the next
checkpoint anyway. Ray itself needs some 15 s to count a node as dead."""
_NOTICED_SECONDS = 30.0
"""Longest wait for Ray to count a dead node as dead, and for what ended workers had reserved to be free."""

Examine = Callable[[str], str | None]
"""Says what makes a node, named by its id, unfit for the run; None where nothing does."""


def workers_that_fit(resources: Mapping[str, float], *, cpus_per_worker: int, gpus_per_worker: int) -> int:
    """How many workers fit into so many CPU cores and GPUs of a node."""
    by_cpu = int(resources.get("CPU", 0) // cpus_per_worker)
    return min(by_cpu, int(resources.get("GPU", 0) // gpus_per_worker)) if gpus_per_worker else by_cpu


def workers_for(resources: ResourcesConfig, room: int) -> int:
    """Workers to start with: as many as there is room for, within the bounds; below them the run waits for room."""
    return max(resources.min_workers, min(resources.max_workers, room))


def available_by_node() -> dict[str, dict[str, float]]:
    """What nobody has reserved on each live node, by its id."""
    from ray._private.state import available_resources_per_node

    found: dict[str, dict[str, float]] = available_resources_per_node()
    return found


def draining_nodes() -> dict[str, float | None]:
    """Nodes that the platform takes back: when, in Unix seconds; None where it did not say.

    Ray has no public way to ask; its own trainer asks the same way.
    """
    from ray._private.state import state

    return {node: deadline / 1000 or None for node, deadline in (state.get_draining_nodes() or {}).items()}


def counted_alive() -> set[str]:
    """Ids of the nodes that Ray counts as alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class Room:
    """The room of one run on its cluster.

    Args:
        resources: What the run asks for.
        gpus_per_worker: 0 or 1.
        examine: Applied once, in a thread, to each node that joins after the start, before it gets workers.
    """

    def __init__(self, resources: ResourcesConfig, gpus_per_worker: int, examine: Examine) -> None:
        self._resources = resources
        self._gpus_per_worker = gpus_per_worker
        self._examine = examine
        self._known = counted_alive()
        self._unfit: set[str] = set()
        self._avoided: frozenset[str] = frozenset()
        self._lost: set[str] = set()
        self._refusals: list[str] = []

    @property
    def elastic(self) -> bool:
        """Whether the run may go on with another number of workers."""
        return self._resources.min_workers < self._resources.max_workers

    @property
    def left_out(self) -> frozenset[str]:
        """Nodes that get no worker of this run: unfit, avoided, or not looked at yet."""
        unseen = counted_alive() - self._known if self.elastic else set()
        return frozenset(self._unfit | unseen | self._avoided)

    @property
    def avoids(self) -> bool:
        """Whether nodes that could have workers get none."""
        return bool(self._avoided)

    def avoid(self, nodes: frozenset[str]) -> bool:
        """Give nodes no workers, unless the others are too few; whether they are enough."""
        closed = nodes | self._unfit | set(draining_nodes())
        room = room_for_workers(
            [node for node in live_nodes() if node.id not in closed],
            cpus_per_worker=self._resources.cpus_per_worker,
            gpus_per_worker=self._gpus_per_worker,
        )
        enough = room >= self._resources.min_workers
        self._avoided = nodes if enough else frozenset()
        return enough

    def refusals(self) -> list[str]:
        """Why nodes that joined get no workers, each told once."""
        told, self._refusals = self._refusals, []
        return told

    def now(self, own: Iterable[str] = ()) -> int:
        """How many workers fit on nodes that are known, fit and not taken back.

        Args:
            own: Node id of each worker of the run that runs now: they count as room.
        """
        self._look_at_new_nodes()
        closed = self.left_out | self._lost | set(draining_nodes())
        mine = Counter(own)
        return sum(
            mine[node]
            + workers_that_fit(
                free, cpus_per_worker=self._resources.cpus_per_worker, gpus_per_worker=self._gpus_per_worker
            )
            for node, free in available_by_node().items()
            if node not in closed
        )

    def growth(self, own: list[str]) -> int | None:
        """Workers that the run could have instead of those it has; None where they are not more."""
        wanted = workers_for(self._resources, self.now(own))
        return wanted if wanted > len(own) else None

    def settle(
        self,
        before: list[str],
        lost: set[str],
        *,
        pause: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> int:
        """Wait until what the last workers left has been sorted out, and say how many workers to start with.

        Args:
            before: Node id of each worker that ended; empty at the first start.
            lost: Nodes among them that vanished.
            pause: Waits a moment; False ends the waiting.
            clock: Monotonic seconds.
        """
        if not self.elastic:
            return self._resources.max_workers
        self._lost |= lost
        begun = clock()
        while before and not self._settled(before, lost, clock() - begun) and pause():
            continue
        return workers_for(self._resources, self.now())

    def _settled(self, before: list[str], lost: set[str], waited: float) -> bool:
        room = self.now()
        if room >= len(before) or waited > _NOTICED_SECONDS:
            return True
        gone = self._lost | self.left_out | set(draining_nodes())
        staying = sum(node not in gone for node in before)
        if lost and (waited < NODE_GRACE_SECONDS or lost & counted_alive()):
            return False
        return room >= staying

    def _look_at_new_nodes(self) -> None:
        if not self.elastic:
            return
        for node_id in counted_alive() - self._known - self._unfit:
            self._unfit.add(node_id)  # until it is known to be fit
            threading.Thread(target=self._look_at, args=(node_id,), name="node-check", daemon=True).start()

    def _look_at(self, node_id: str) -> None:
        problem = self._examine(node_id)
        if problem is not None:
            self._refusals.append(problem)
            return
        self._known.add(node_id)
        self._unfit.discard(node_id)
