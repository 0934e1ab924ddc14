"""Room for workers: how many fit on the nodes now, which nodes the platform takes back, how many a run starts with."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping

from cluster.config import ResourcesConfig

NODE_GRACE_SECONDS = 10.0
"""How long a run that may go on with fewer workers waits for a lost node to come back. A supervisor starts a raylet
that died again within seconds; waiting longer costs the time of all other workers, and a late node is taken at the next
checkpoint anyway. Ray itself needs some 15 s to count a node as dead."""
_NOTICED_SECONDS = 30.0
"""Longest wait for Ray to count a dead node as dead, and for what ended workers had reserved to be free."""

_EXAMINED_AGAIN_SECONDS = 60.0
"""A node that was unfit may have been mended: its storage is mounted, its image is there."""

Examine = Callable[[str], str | None]
"""Says what makes a node, named by its id, unfit for the run; None where nothing does."""


def workers_that_fit(resources: Mapping[str, float], *, cpus_per_worker: int, gpus_per_worker: int) -> int:
    """How many workers fit into so many CPU cores and GPUs of a node."""
    by_cpu = int(resources.get("CPU", 0) // cpus_per_worker)
    return min(by_cpu, int(resources.get("GPU", 0) // gpus_per_worker)) if gpus_per_worker else by_cpu


def workers_given_up(
    free: Iterable[Mapping[str, float]], needs: Mapping[str, float], *, cpus_per_worker: int, gpus_per_worker: int
) -> int | None:
    """How many workers fewer fit where one of the nodes keeps room for something else; None where none has the room.

    Args:
        free: What is free on each node.
        needs: What the other thing takes of a node.
        cpus_per_worker: CPU cores of one worker.
        gpus_per_worker: GPUs of one worker.
    """

    def fit(resources: Mapping[str, float]) -> int:
        return workers_that_fit(resources, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)

    return min(
        (
            fit(node) - fit({name: amount - needs.get(name, 0) for name, amount in node.items()})
            for node in free
            if all(node.get(name, 0) >= amount for name, amount in needs.items())
        ),
        default=None,
    )


def workers_for(resources: ResourcesConfig, room: int) -> int:
    """Workers to start with: as many as there is room for, within the bounds; below them the run waits for room."""
    return max(resources.min_workers, min(resources.max_workers, room))


def available_by_node() -> dict[str, dict[str, float]]:
    """What nobody has reserved on each live node, by its id."""
    from ray._private.state import available_resources_per_node

    found: dict[str, dict[str, float]] = available_resources_per_node()
    return found


def reserved_by_node() -> dict[str, int]:
    """How many workers this driver holds room for on each node, by its id: those that run and those about to.

    Ray has no public way to ask whose a placement group is.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    found: Counter[str] = Counter()
    job = ray.get_runtime_context().get_job_id()
    for each in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(each)
        holds = group.state not in (PlacementGroupTableData.PENDING, PlacementGroupTableData.REMOVED)
        if holds and group.creator_job_id.hex() == job:
            found.update(bundle.node_id.hex() for bundle in group.bundles)
    return dict(found)


def kind_of_devices(gpus_per_worker: int) -> str:
    """What the workers compute on, as Ray names the GPUs of the live nodes; `cpu` without GPUs."""
    import ray

    if not gpus_per_worker:
        return "cpu"
    prefix = "accelerator_type:"
    names = {name for node in ray.nodes() if node["Alive"] for name in node["Resources"] if name.startswith(prefix)}
    return ",".join(sorted(name.removeprefix(prefix) for name in names)) or "gpu"


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
        examine: Applied in a thread to each node that joins after the start, before it gets workers; again after a
            minute where the node was unfit.
        clock: Monotonic seconds.
        spare: What the workers leave free on some node, as Ray names it.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        gpus_per_worker: int,
        examine: Examine,
        clock: Callable[[], float] = time.monotonic,
        *,
        spare: Mapping[str, float] | None = None,
    ) -> None:
        self._spare = spare or {}
        self._resources = resources
        self._gpus_per_worker = gpus_per_worker
        self._examine = examine
        self._clock = clock
        self._known = counted_alive()
        self._settled_with = set(self._known)
        self._unfit: set[str] = set()
        self._examined_again: dict[str, float] = {}
        self._problems: dict[str, str] = {}
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
        room = self._count(reserved_by_node(), nodes | self._unfit | set(draining_nodes()))
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
        return self._count(Counter(own), closed) - self._given_up(closed)

    def within_reach(self) -> int:
        """How many workers the run could have, with those that it holds room for already."""
        return self._count(reserved_by_node(), self.left_out | set(draining_nodes()))

    @property
    def nodes_changed(self) -> bool:
        """Whether nodes came or went since the room was settled: Ray knows of none that is to be left out since."""
        return counted_alive() != self._settled_with

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
        self._settled_with = counted_alive()
        if not self.elastic:
            return self._resources.max_workers
        self._lost |= lost
        begun = clock()
        while before and not self._settled(before, lost, clock() - begun) and pause():
            continue
        self._settled_with = counted_alive()
        return workers_for(self._resources, self.now())

    def _count(self, held: Mapping[str, int], closed: Container[str]) -> int:
        """Workers that fit into what is free, and those that run or are about to, on nodes that are not closed."""
        return sum(
            held.get(node, 0)
            + workers_that_fit(
                free, cpus_per_worker=self._resources.cpus_per_worker, gpus_per_worker=self._gpus_per_worker
            )
            for node, free in available_by_node().items()
            if node not in closed
        )

    def _given_up(self, closed: Container[str]) -> int:
        """Workers that fit and are not taken, for what is to be left free."""
        if not self._spare:
            return 0
        free = [resources for node, resources in available_by_node().items() if node not in closed]
        fewer = workers_given_up(
            free,
            self._spare,
            cpus_per_worker=self._resources.cpus_per_worker,
            gpus_per_worker=self._gpus_per_worker,
        )
        return fewer or 0

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
        for node_id in counted_alive() - self._known:
            if self._clock() < self._examined_again.get(node_id, 0.0):
                continue
            self._unfit.add(node_id)  # until it is known to be fit
            self._examined_again[node_id] = math.inf
            threading.Thread(target=self._look_at, args=(node_id,), name="node-check", daemon=True).start()

    def _look_at(self, node_id: str) -> None:
        problem = self._examine(node_id)
        if problem is not None:
            if self._problems.get(node_id) != problem:
                self._refusals.append(problem)
            self._problems[node_id] = problem
            self._examined_again[node_id] = self._clock() + _EXAMINED_AGAIN_SECONDS
            return
        self._known.add(node_id)
        self._unfit.discard(node_id)
