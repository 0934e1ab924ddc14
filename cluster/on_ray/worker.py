"""Ray Train: the trainer that starts workers and the function that each of them runs. The only importer of ray.train.

Ray restarts the worker group when a worker or its node is lost; nothing is reported to Ray (a report costs a poll of
its controller, and its index is not atomic): state lives in our checkpoints alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback

from cluster.attempt import Surroundings, run_attempt
from cluster.attempt_record import closing_fields
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine
from cluster.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointUnreadableError,
    ClusterError,
)
from cluster.faults.failure import FailureKind
from cluster.faults.inquest import Seat
from cluster.faults.pulse import Pulse
from cluster.faults.rules import Ending, describe_error
from cluster.faults.work_in_hand import WorkInHand, failure_of
from cluster.lease import holds
from cluster.on_ray.mailbox import MailboxLink, MailboxLogHandler
from cluster.on_ray.node import interface_of, use_node_local_caches
from cluster.record.wandb_mirror import TrackingSettings
from cluster.storage.operations import storage_path
from cluster.topology import Topology
from data_pipeline.errors import DataError
from llm.errors import ModelError

PROCESS_GROUP_TIMEOUT_SECONDS = 1800
_WAITS_FOR_ROOM = 60
"""Times, of a minute each, that Ray Train waits for room for all workers after a node was lost."""
_VERDICT_POLL_SECONDS = 0.1
_LOGGERS = ("cluster", "llm", "data_pipeline")


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What every worker is told."""

    config: RunConfig
    tracking: TrackingSettings
    mailbox: Any
    holder: str
    """Fencing token: workers of a driver that lost the run change nothing."""


@dataclass(frozen=True, kw_only=True)
class GroupTerms:
    """What one group of workers is started on."""

    workers: int
    gpus_per_worker: int
    left_out: frozenset[str]
    """Ids of nodes that get no worker."""


class NotRetriedError(ClusterError):
    """An error that would only repeat itself; the driver has been told."""


class RefitError(ClusterError):
    """Ends Ray's controller, so that the driver starts the workers on other terms."""


class LossReporter(UserCallback):  # type: ignore[misc]
    """Tells the driver how workers ended and does what it decides; runs in Ray's controller."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Wait for the driver's verdict: let Ray Train replace the workers, or end the controller.

        Ray offers no way to end a run from here; without its controller it ends at once.
        """
        endings = [asdict(ending_of(rank, error)) for rank, error in sorted(worker_exceptions.items())]
        report = {"type": "group_failed", "number": secrets.token_hex(8), "endings": endings}
        while (decision := ray.get(self._mailbox.verdict.remote(report))) is None:
            time.sleep(_VERDICT_POLL_SECONDS)
        if decision == "end":
            os._exit(1)
        if decision == "refit":
            raise RefitError("the driver starts the workers on other terms")


class Introduction(ControllerCallback):  # type: ignore[misc]
    """Hands the driver Ray's controller, which it may have to end while that waits for room."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_start(self, train_run_context: Any) -> None:
        """Post the controller's handle."""
        self._mailbox.post.remote({"type": "controller", "actor": ray.get_runtime_context().current_actor})


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

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Leave the process group alone: the workers' processes end next.

        Taking it apart takes 30 s where a rank still waits in a collective for one that failed.
        """


class LeanTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without Ray Data's manager: our batches come from elsewhere, and it takes seconds to start."""

    def _create_default_callbacks(self) -> list[Any]:
        kept = [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]
        order: WorkerOrder | None = (self.train_loop_config or {}).get("order")
        return kept + ([Introduction(order.mailbox)] if order is not None else [])


def use_interface_of_node() -> None:
    """Point gloo and NCCL at the interface that carries this node's Ray address, unless the user chose one."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def fit(order: WorkerOrder, terms: GroupTerms, *, name: str, scratch: Path) -> dict[str, Any]:
    """Run the training on Ray Train workers until it ends, replacing lost ones as the driver decides.

    Args:
        order: Told to each worker.
        terms: How many workers, and where.
        name: Unique per driver, so that Ray never continues anything of its own accord.
        scratch: For Ray's own notes.

    Returns:
        Rank 0's result: step, finished, regroup, and spent, the seconds of its end by their names in the record.

    Raises:
        ray.exceptions.RayActorError: The controller died, or ended itself because the run is given up.
        ray.train.ControllerError: The driver decided to start the workers on other terms, or Ray Train failed.
    """
    on_gpus = terms.gpus_per_worker > 0
    per_worker: dict[str, float] = {"CPU": order.config.resources.cpus_per_worker}
    if on_gpus:
        per_worker["GPU"] = terms.gpus_per_worker
    trainer = LeanTrainer(
        train_worker,
        train_loop_config={"order": order},
        scaling_config=ScalingConfig(
            num_workers=terms.workers,
            use_gpu=on_gpus,
            resources_per_worker=per_worker,
            label_selector=elsewhere_than(terms.left_out),
        ),
        torch_config=InterfaceConfig(backend="nccl" if on_gpus else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_SECONDS),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=_WAITS_FOR_ROOM),
            callbacks=[LossReporter(order.mailbox)],
        ),
    )
    result: dict[str, Any] = trainer.fit().return_value
    return result


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What one Ray Train worker does: find its place, run the attempt, tell the driver what went wrong."""
    order: WorkerOrder = settings["order"]
    topology = _topology(order.config)
    if topology.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    use_node_local_caches()
    link = MailboxLink(order.mailbox, watch_wishes=topology.is_main)
    seat = _seat(topology.rank)
    link.post({"type": "seat", **asdict(seat)})
    work = WorkInHand()
    pulse = Pulse(
        rank=topology.rank,
        world_size=topology.world_size,
        node=seat.node,
        node_id=seat.node_id,
        step=lambda: work.step,
        post=link.post,
    )
    pulse.start()
    handler = MailboxLogHandler(link, topology.rank)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        surroundings = Surroundings(
            build_engine=deepspeed_engine,
            zero_stage=order.config.zero.stage,
            link=link,
            observe=work.take,
            tracking=replace(
                order.tracking, api_key=ray.get(order.mailbox.wandb_key.remote()) if topology.is_main else None
            ),
            evaluations=link.evaluations,
            still_ours=lambda: holds(storage_path(order.config.storage) / order.config.name, order.holder),
        )
        result = run_attempt(order.config, topology, surroundings)
    except Exception as error:
        failure = failure_of(error, seat, work)
        link.post_and_wait({"type": "failure", **asdict(failure)})
        if in_vain(error, failure.kind):
            link.post_and_wait({"type": "fatal", "text": str(error), "rank": seat.rank, "pid": seat.pid})
            raise NotRetriedError(str(error)) from error
        raise
    finally:
        pulse.close()
        link.close()
    return {
        "step": result.step,
        "finished": result.finished,
        "regroup": result.regroup,
        "spent": closing_fields(result.spent),
    }


def in_vain(error: Exception, kind: FailureKind) -> bool:
    """Whether another trial would meet an error again that has told the person all there is to say."""
    another = (CheckpointMismatchError, CheckpointDamagedError, CheckpointUnreadableError)
    if isinstance(error, another) or kind == "out_of_memory":
        return False  # it takes the checkpoint before, or can read this one; memory may suffice then
    return isinstance(error, (ClusterError, DataError, ModelError))


def ending_of(rank: int, error: Exception) -> Ending:
    """How a rank ended, from the exception that Ray Train has of it."""
    said = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    return Ending(
        rank=rank,
        error=describe_error(said),
        text=f"{type(said).__name__}: {said}",
        died=isinstance(error, (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, RayActorError)),
        preempted=isinstance(said, RayActorError) and said.preempted,
    )


def elsewhere_than(left_out: frozenset[str]) -> dict[str, str] | None:
    """Ray's label selector for all nodes but some; None where none is left out."""
    return {"ray.io/node-id": f"!in({','.join(sorted(left_out))})"} if left_out else None


def _seat(rank: int) -> Seat:
    context = ray.get_runtime_context()
    return Seat(
        rank=rank,
        node_id=context.get_node_id(),
        node=ray.util.get_node_ip_address(),
        pid=os.getpid(),
        actor_id=context.get_actor_id(),
    )


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
