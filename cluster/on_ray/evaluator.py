"""Evaluations beside the training as Ray tasks: on room that the workers leave free, one or two at a time.

They run only while the workers train: whenever those are put together anew, running tasks are ended and begun again
later, so that no worker waits for the room of an evaluation.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.config import RunConfig
from cluster.errors import ResourcesError
from cluster.evaluation.beside import (
    EVALUATION_FAILED,
    DueCheckpoint,
    EvaluationQueue,
    Outcome,
    event_of,
    lost_event,
)
from cluster.evaluation.config import EvaluationConfig
from cluster.on_ray.ray_cluster import Node, room_for_workers
from cluster.on_ray.room import workers_given_up

_IN_FLIGHT = 2
_TRIES = 3


class Evaluator:
    """The evaluations of one run, in the driver.

    Args:
        config: The run.
        gpus_per_worker: 0 or 1.
        write_event: Puts an event into the record.
        left_out: Ids of nodes that are not used.
    """

    def __init__(
        self,
        config: RunConfig,
        gpus_per_worker: int,
        *,
        write_event: Callable[[dict[str, Any]], None],
        left_out: Callable[[], frozenset[str]],
    ) -> None:
        self._config = config
        self._needs = task_needs(config.evaluation, gpus_per_worker)
        self._write_event = write_event
        self._left_out = left_out
        self._queue = EvaluationQueue(in_flight=_IN_FLIGHT, tries=_TRIES)
        self._tasks: dict[DueCheckpoint, Any] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a message of type `evaluations_wanted`."""
        self._queue.want(message["attempt"], map(DueCheckpoint.named_in, message["wanted"]))

    def outcomes(self) -> tuple[Outcome, ...]:
        """What rank 0 may record."""
        return self._queue.outcomes()

    def look(self) -> None:
        """Take what tasks have brought, and begin what is to begin; returns at once."""
        self._collect()
        for due in self._queue.abandoned():
            self._end(due)
        while (upcoming := self._queue.next()) is not None:
            self._tasks[upcoming] = self._submit(upcoming)

    def give_way(self) -> None:
        """End all tasks: the workers need the room, or the run has ended."""
        for due in list(self._tasks):
            self._end(due)

    def _collect(self) -> None:
        import ray
        from ray.exceptions import RayError

        if not self._tasks:
            return
        ended, _ = ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0)
        for due in [due for due, task in self._tasks.items() if task in ended]:
            try:
                self._take(due, ray.get(self._tasks.pop(due)))
            except RayError as error:
                outcome = self._queue.failed(due, self._explain(error))
                if outcome is not None:
                    self._tell_failure(outcome)

    def _take(self, due: DueCheckpoint, outcome: Outcome | None) -> None:
        if outcome is None:
            self._write_event(lost_event(due))
            outcome = Outcome(due=due, problem="its checkpoint is gone")
        elif outcome.problem is not None:
            self._tell_failure(outcome)
        self._queue.ended(outcome)

    def _tell_failure(self, outcome: Outcome) -> None:
        self._write_event(event_of(outcome.due, EVALUATION_FAILED, outcome.problem or ""))

    def _explain(self, error: Exception) -> str:
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):
            return f"{type(error.cause).__name__}: {error.cause}"
        limit = self._config.evaluation.task_timeout_seconds
        return (
            f"its process ended ({type(error).__name__}): killed, out of memory, or longer at work than "
            f"evaluation.task_timeout_seconds = {limit:g}"
        )

    def _end(self, due: DueCheckpoint) -> None:
        import ray

        ray.cancel(self._tasks.pop(due), force=True)
        self._queue.gave_way(due)

    def _submit(self, due: DueCheckpoint) -> Any:
        import ray

        from cluster.on_ray.worker import elsewhere_than

        selector = elsewhere_than(self._left_out())
        task = ray.remote(evaluate_in_task).options(
            name=f"evaluation-of-step-{due.step}",
            num_cpus=self._needs.get("CPU", 0),
            num_gpus=self._needs.get("GPU", 0),
            max_retries=0,
            scheduling_strategy="DEFAULT",
            **({"label_selector": selector} if selector else {}),
        )
        return task.remote(self._config, due, on_gpu="GPU" in self._needs)


def require_room_for_task(config: RunConfig, nodes: Sequence[Node], gpus_per_worker: int) -> None:
    """Make sure that an evaluation fits beside the workers; does nothing where it is not to.

    Raises:
        ResourcesError: It would wait for room for ever.
    """
    needs, resources = task_needs(config.evaluation, gpus_per_worker), config.resources
    if not needs:
        return
    fewer = workers_given_up(
        [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes],
        needs,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    room = room_for_workers(nodes, cpus_per_worker=resources.cpus_per_worker, gpus_per_worker=gpus_per_worker)
    if fewer is None or room - fewer < resources.min_workers:
        raise ResourcesError(
            f"evaluation.beside_training takes {needs.get('CPU', 0):g} CPU cores and {needs.get('GPU', 0):g} GPUs of a "
            f"node beside the {resources.min_workers} workers, and the cluster has CPU cores: "
            f"{[node.cpus for node in nodes]}, GPUs: {[node.gpus for node in nodes]} (by node): the evaluations would "
            "wait for ever. Lower evaluation.cpus_per_task (0 shares the workers' cores) or gpus_per_task, lower "
            "resources.workers, add a node, or turn evaluation.beside_training off."
        )


def evaluate_in_task(config: RunConfig, due: DueCheckpoint, *, on_gpu: bool) -> Outcome | None:
    """What a task does: one checkpoint's evaluation, whose process ends where it takes too long."""
    faulthandler.dump_traceback_later(config.evaluation.task_timeout_seconds, exit=True)
    try:
        from cluster.evaluation.task import evaluate_checkpoint
        from cluster.on_ray.node import use_node_local_caches
        from cluster.topology import Topology

        use_node_local_caches()
        threads = config.evaluation.threads_per_task
        return evaluate_checkpoint(config, due, Topology(device="cuda:0" if on_gpu else "cpu", threads=threads))
    finally:
        faulthandler.cancel_dump_traceback_later()


def task_needs(evaluation: EvaluationConfig, gpus_per_worker: int) -> dict[str, float]:
    """What one task takes of a node, as Ray names it; nothing where it evaluates in the training."""
    if not evaluation.beside_training:
        return {}
    gpus = gpus_per_worker if evaluation.gpus_per_task == "auto" else evaluation.gpus_per_task
    return {name: amount for name, amount in (("CPU", evaluation.cpus_per_task), ("GPU", float(gpus))) if amount}
