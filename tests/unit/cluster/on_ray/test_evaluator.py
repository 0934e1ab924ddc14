from __future__ import annotations

import pytest

from cluster.config import CheckpointConfig, ResourcesConfig, RunConfig
from cluster.errors import ResourcesError
from cluster.evaluation.config import EvaluationConfig
from cluster.on_ray.evaluator import require_room_for_task, task_needs
from cluster.on_ray.ray_cluster import Node
from data_pipeline.config import DataConfig


def evaluation(*, beside: bool = True, cpus: float = 1.0, gpus: int | None = None) -> EvaluationConfig:
    return EvaluationConfig(
        beside_training=beside, cpus_per_task=cpus, gpus_per_task="auto" if gpus is None else gpus, every_steps=20
    )


def node(cpus: int, gpus: int = 0) -> Node:
    return Node(id=f"{cpus}", host="host", address="10.0.0.1", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("config", "gpus_per_worker", "needs"),
    [
        (evaluation(beside=False), 1, {}),
        (evaluation(), 0, {"CPU": 1.0}),
        (evaluation(), 1, {"CPU": 1.0, "GPU": 1.0}),
        (evaluation(gpus=0, cpus=4), 1, {"CPU": 4}),
        (evaluation(cpus=0), 0, {}),
    ],
)
def test_task_takes_a_gpu_where_the_workers_do(
    config: EvaluationConfig, gpus_per_worker: int, needs: dict[str, float]
) -> None:
    assert task_needs(config, gpus_per_worker) == needs


def run(config: EvaluationConfig, workers: int | tuple[int, int]) -> RunConfig:
    return RunConfig(
        name="run",
        data=DataConfig(dataset="/data"),
        resources=ResourcesConfig(workers=workers),
        checkpoint=CheckpointConfig(every_steps=20),
        evaluation=config,
    )


@pytest.mark.parametrize(
    ("config", "workers", "nodes", "gpus_per_worker"),
    [
        (evaluation(), 2, [node(2), node(1)], 0),
        (evaluation(), (2, 8), [node(3)], 0),
        (evaluation(cpus=0), 2, [node(2)], 0),
        (evaluation(gpus=0), 2, [node(8, 2)], 1),
        (evaluation(beside=False), 2, [node(2)], 0),
    ],
)
def test_run_is_taken_when_an_evaluation_fits_beside_the_workers(
    config: EvaluationConfig, workers: int | tuple[int, int], nodes: list[Node], gpus_per_worker: int
) -> None:
    require_room_for_task(run(config, workers), nodes, gpus_per_worker)


@pytest.mark.parametrize(
    ("config", "nodes", "gpus_per_worker"),
    [
        (evaluation(), [node(2)], 0),
        (evaluation(cpus=2), [node(1), node(1), node(1), node(1)], 0),
        (evaluation(), [node(8, 2)], 1),
    ],
)
def test_run_is_refused_when_an_evaluation_would_wait_for_ever(
    config: EvaluationConfig, nodes: list[Node], gpus_per_worker: int
) -> None:
    with pytest.raises(ResourcesError, match="beside the 2 workers") as refused:
        require_room_for_task(run(config, 2), nodes, gpus_per_worker)
    assert "Lower evaluation.cpus_per_task (0 shares the workers' cores)" in str(refused.value)
