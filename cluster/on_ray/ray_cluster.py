"""A Ray cluster as the driver meets it: a private one of this machine, or a running one that it joins."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ResourcesError, TrainingFailedError

logger = logging.getLogger(__name__)

_RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before Ray is imported; each is a trap of Ray 2.60: slow polls, changed directories, doubled output, a wait
for the deadline of a node that is taken back, and a second cluster that starts by itself when a thread asks for
something after the shutdown."""
PACKAGES = Path(__file__).resolve().parents[2]
"""Where the four packages lie side by side: the workers of a private cluster find them there."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connection to a cluster."""

    attached: bool
    """False for a private cluster of this machine, which ends with the command."""
    dashboard_url: str | None
    """Where its Jobs API answers; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A live node of the cluster."""

    id: str
    host: str
    address: str
    cpus: int
    gpus: int

    @property
    def description(self) -> str:
        """The node in words."""
        return f"node {self.host} ({self.address})"


@contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Join a cluster, or start a private one of this machine that ends with the block.

    Args:
        address: A running cluster; None starts a private one.

    Raises:
        ResourcesError: The cluster cannot be joined or started.
        TrainingFailedError: The cluster failed under what the block did.
    """
    for key, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if address is None:  # the processes of a private cluster inherit this; a submitted job brings its working directory
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    import ray
    from ray.exceptions import RayError

    threading.Thread(target=_import_what_comes_next, name="imports", daemon=True).start()
    context = _init(address)
    _silence_ray()
    try:
        yield Cluster(attached=address is not None, dashboard_url=_url(context.dashboard_url))
    except RayError as error:
        raise TrainingFailedError(
            f"the Ray cluster failed under the run: {error}. The same command continues from the last checkpoint."
        ) from error
    finally:
        ray.shutdown()


def _init(address: str | None) -> Any:
    """`ray.init`, its errors in words."""
    import ray

    try:
        return ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
    except Exception as error:  # plain ones too: Ray raises them where a node takes longer to start than it waits
        if address is None:
            raise ResourcesError(
                f"Ray could not be started on this machine: {error} Where other programs take all of its cores or "
                "memory, give the same command again once they do not; otherwise Ray's logs in "
                "/tmp/ray/session_latest/logs say more."
            ) from error
        if not isinstance(error, (ConnectionError, RuntimeError, ValueError)):
            raise
        raise ResourcesError(
            f"the Ray cluster at {address} cannot be joined: {error}. Check that it runs, that RAY_ADDRESS names it, "
            "and that its Python and Ray versions are those of this command."
        ) from error


def live_nodes() -> list[Node]:
    """The nodes that are alive now."""
    import ray

    return [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def room_for_workers(nodes: Sequence[Node], *, cpus_per_worker: int, gpus_per_worker: int) -> int:
    """How many workers fit on the nodes, were they empty."""
    return sum(
        min(
            node.cpus // cpus_per_worker,
            node.gpus // gpus_per_worker if gpus_per_worker else node.cpus,
        )
        for node in nodes
    )


def free_placement_groups() -> None:
    """Free what a controller that died had reserved on a private cluster, where all reservations were its own.

    Ray's own cleaner does it where there is a dashboard to ask.
    """
    from ray._raylet import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for identity, facts in placement_group_table().items():
        if facts["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(identity))))


def _url(address: str | None) -> str | None:
    return None if not address else address if "://" in address else f"http://{address}"


def _import_what_comes_next() -> None:
    """Spend the seconds in which Ray's processes start on the imports of Ray Train and torch."""
    with contextlib.suppress(Exception):  # it fails again where it is needed, and is told there
        import cluster.on_ray.worker  # noqa: F401


def _silence_ray() -> None:
    """Keep Ray's own account of dead workers out of the output, kilobytes with escape codes: our events tell it.

    Ray has no setting for it; its logs under the session's directory keep every word.
    """
    import ray._private.worker as ray_worker

    def pass_on(data: dict[str, Any], ignore_prefix: bool) -> None:
        logger.debug("Ray: %s", "\n".join(data["lines"]))

    ray_worker.print_to_stdstream = pass_on
