"""Ray Train: the trainer that starts workers and the function that each of them runs. The only importer of ray.train.

Ray restarts the worker group when a worker or its node is lost; nothing is reported to Ray (a report costs a poll of
its controller, and its index is not atomic): state lives in our checkpoints alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train.torch.config import _TorchBackend

from cluster.attempt import Surroundings, run_attempt
from cluster.config import RunConfig
from cluster.engines import deepspeed_engine
from cluster.errors import CheckpointMismatchError, ClusterError
from cluster.lease import holds
from cluster.mailbox import MailboxLink, MailboxLogHandler
from cluster.node import interface_of, use_node_local_caches
from cluster.topology import Topology
from cluster.wandb_mirror import TrackingSettings
from data_pipeline.errors import DataError
from llm.errors import ModelError

PROCESS_GROUP_TIMEOUT_SECONDS = 1800
_WAITS_FOR_ROOM = 60
"""Times, of a minute each, that Ray Train waits for room for all workers after a node was lost."""
_LOGGERS = ("cluster", "llm", "data_pipeline")


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What every worker is told."""

    config: RunConfig
    tracking: TrackingSettings
    mailbox: Any
    holder: str
    """Fencing token: workers of a driver that lost the run change nothing."""


class NotRetriedError(ClusterError):
    """An error that would only repeat itself; the driver has been told."""


class LossReporter(UserCallback):  # type: ignore[misc]
    """Tells the driver which workers were lost; runs in Ray's controller."""

    def __init__(self, mailbox: Any, max_failures: int) -> None:
        self._mailbox = mailbox
        self._max_failures = max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Post one event for a failure of the worker group, or end the controller where a retry would be in vain.

        Ray counts failures over the whole life of a controller, which a long run outlives; here they count since the
        last checkpoint. Ray offers no way to end a run from here; without its controller it ends at once.
        """
        if any(isinstance(error, NotRetriedError) for error in worker_exceptions.values()):
            os._exit(1)
        causes = {str(rank): _cause(error) for rank, error in sorted(worker_exceptions.items())}
        ray.get(self._mailbox.post.remote({"type": "event", "event": "worker_lost", "causes": causes}))
        if not ray.get(self._mailbox.may_retry.remote(self._max_failures)):
            ray.get(self._mailbox.post.remote({"type": "fatal", "text": exhausted(self._max_failures, causes)}))
            os._exit(1)


@dataclass
class InterfaceConfig(ray.train.torch.TorchConfig):  # type: ignore[misc]
    """Torch's process group over the network interface that Ray uses on each node."""

    @property
    def backend_cls(self) -> type[_InterfaceBackend]:
        """What sets the process group up."""
        return _InterfaceBackend


class _InterfaceBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Name the interface on every worker, then let Ray connect them.

        Left alone, gloo takes the address that the host's name resolves to, which on many images is the loopback.
        """
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


class LeanTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without Ray Data's manager: our batches come from elsewhere, and it takes seconds to start."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


def use_interface_of_node() -> None:
    """Point gloo and NCCL at the interface that carries this node's Ray address, unless the user chose one."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def fit(order: WorkerOrder, *, gpus_per_worker: int, name: str, scratch: Path) -> dict[str, Any]:
    """Run the training on Ray Train workers until it ends, replacing lost ones.

    Args:
        order: Told to each worker.
        gpus_per_worker: 0 or 1.
        name: Unique per driver, so that Ray never continues anything of its own accord.
        scratch: Directory that all nodes see, for Ray's own notes.

    Returns:
        Rank 0's result: step and finished.

    Raises:
        ray.exceptions.RayActorError: The controller died, or ended itself because the run is given up.
    """
    resources = order.config.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if gpus_per_worker:
        per_worker["GPU"] = gpus_per_worker
    trainer = LeanTrainer(
        train_worker,
        train_loop_config={"order": order},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        torch_config=InterfaceConfig(
            backend="nccl" if gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=_WAITS_FOR_ROOM),
            callbacks=[LossReporter(order.mailbox, resources.max_failures)],
        ),
    )
    result: dict[str, Any] = trainer.fit().return_value
    return result


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What one Ray Train worker does: find its place, run the attempt, report errors that a retry would repeat."""
    order: WorkerOrder = settings["order"]
    topology = _topology(order.config)
    if topology.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    use_node_local_caches()
    link = MailboxLink(order.mailbox, watch_stop=topology.is_main)
    handler = MailboxLogHandler(link, topology.rank)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        surroundings = Surroundings(
            build_engine=deepspeed_engine,
            zero_stage=order.config.zero.stage,
            link=link,
            tracking=replace(
                order.tracking, api_key=ray.get(order.mailbox.wandb_key.remote()) if topology.is_main else None
            ),
            still_ours=lambda: holds(Path(order.config.storage) / order.config.name, order.holder),
        )
        result = run_attempt(order.config, topology, surroundings)
    except CheckpointMismatchError:
        raise  # the next attempt takes the checkpoint before
    except (ClusterError, DataError, ModelError) as error:
        link.post_and_wait({"type": "fatal", "rank": topology.rank, "text": str(error)})
        raise NotRetriedError(str(error)) from error
    finally:
        link.close()
    return {"step": result.step, "finished": result.finished}


def _topology(config: RunConfig) -> Topology:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Topology(
        rank=context.get_world_rank(),
        local_rank=context.get_local_rank(),
        node_rank=context.get_node_rank(),
        world_size=context.get_world_size(),
        device=str(device),
        threads=config.resources.cpus_per_worker,
    )


def exhausted(max_failures: int, causes: Mapping[str, str]) -> str:
    """Why a run is given up."""
    ranks = "\n".join(f"rank {rank}: {cause}" for rank, cause in causes.items())
    return (
        f"workers failed more often than resources.max_failures = {max_failures} allows without a new checkpoint.\n"
        f"{ranks}\nCheckpoints up to the last saved one are whole; the same command continues from there."
    )


def _cause(error: BaseException) -> str:
    """The kind of error and the last line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
