"""What our trainer leaves out of Ray's, and how ends of workers are told, held against the installed Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.batches import RankBatch
from cluster.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointUnreadableError,
    StorageError,
)
from cluster.faults import hang_watch
from cluster.faults.inquest import Seat
from cluster.faults.rules import Ending, classify
from cluster.faults.work_in_hand import WorkInHand, failure_of
from cluster.on_ray.worker import LeanTrainer, elsewhere_than, ending_of, in_vain, train_worker
from data_pipeline.errors import DatasetError


def test_trainer_leaves_out_what_is_unused_and_nothing_else(tmp_path: Path) -> None:
    trainer = LeanTrainer(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="x", storage_path=str(tmp_path)),
    )
    whole = {type(each).__name__ for each in ray.train.torch.TorchTrainer._create_default_callbacks(trainer)}
    lean = {type(each).__name__ for each in trainer._create_default_callbacks()}
    assert whole - lean == {"DatasetsCallback"}


def test_end_of_a_worker_is_its_own_error_when_it_could_speak() -> None:
    assert ending_of(1, ValueError("first\nlast")) == Ending(
        rank=1, error="ValueError: last", text="ValueError: first\nlast", died=False
    )


def test_end_of_a_worker_is_what_ray_says_when_its_process_died() -> None:
    seen = ending_of(0, WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError()))
    assert seen.died
    assert seen.error == "ActorDiedError: The actor died unexpectedly before finishing this task."
    assert classify(seen, node_alive=True, node_draining=False) == "lost_worker"


def test_end_of_a_worker_is_a_lack_of_memory_when_the_monitor_of_ray_killed_it() -> None:
    seen = ending_of(0, WorkerHealthCheckFailedError("A worker health check failed.", failure=OutOfMemoryError("x")))
    assert classify(seen, node_alive=True, node_draining=False) == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (StorageError("full"), "error", True),
        (DatasetError("damaged"), "error", True),
        (CheckpointError("of another model"), "error", True),
        (CheckpointMismatchError("another loss"), "error", False),
        (CheckpointDamagedError("a file was altered"), "error", False),
        (CheckpointUnreadableError("no permission"), "error", False),
        (StorageError("cannot allocate memory"), "out_of_memory", False),
        (ValueError("x"), "error", False),
    ],
)
def test_retry_is_in_vain_when_the_error_has_told_what_to_do(error: Exception, kind: str, expected: bool) -> None:
    assert in_vain(error, kind) is expected  # type: ignore[arg-type]


def test_failure_tells_what_the_rank_had_in_work() -> None:
    seat = Seat(rank=1, node_id="n", node="10.0.0.1", pid=7, actor_id="a")
    work = WorkInHand()
    work.take(RankBatch(step=5, micro_batches=(), weight_sum=1.0, sample_index=np.array([[4, 9], [11, -1]])))
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        failure = failure_of(error, seat, work)
    assert (failure.rank, failure.node, failure.pid, failure.step) == (1, "10.0.0.1", 7, 5)
    assert (failure.kind, failure.sequences) == ("out_of_memory", (4, 9, 11))
    assert "raise torch.OutOfMemoryError" in failure.traceback


def test_workers_are_kept_from_nodes_that_are_left_out() -> None:
    assert elsewhere_than(frozenset()) is None
    assert elsewhere_than(frozenset({"b", "a"})) == {"ray.io/node-id": "!in(a,b)"}


def test_stack_of_the_training_thread_is_found_by_the_name_of_what_workers_run() -> None:
    assert f" in {train_worker.__name__}" == hang_watch._TRAINING
