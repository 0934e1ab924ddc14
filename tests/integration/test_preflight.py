"""What is checked before workers start: room, and what the nodes answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ResourcesConfig, RunConfig
from cluster.errors import ResourcesError, RunRefusedError, StorageError
from cluster.on_ray import preflight
from cluster.on_ray.preflight import NodeAnswer, _judge, answer_for_node, resolve_gpus
from cluster.on_ray.ray_cluster import Cluster, Node, room_for_workers
from cluster.versions import library_versions
from data_pipeline.config import DataConfig
from data_pipeline.errors import DatasetError
from llm.config import ModelConfig
from llm.errors import AttentionBackendError


def node(cpus: int = 4, gpus: int = 0) -> Node:
    return Node(id="n1", host="worker-1", address="10.0.0.7", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("nodes", "cpus_per_worker", "gpus_per_worker", "room"),
    [
        ([node(4), node(3)], 1, 0, 7),
        ([node(4), node(3)], 2, 0, 3),  # a worker does not span nodes
        ([node(8, 2), node(1, 8)], 1, 1, 3),
        ([node(0)], 1, 0, 0),
    ],
)
def test_room_for_workers(nodes: list[Node], cpus_per_worker: int, gpus_per_worker: int, room: int) -> None:
    assert room_for_workers(nodes, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker) == room


@pytest.mark.parametrize(("gpus", "resolved", "reason"), [(0, 0, "no GPU"), (1, 1, "1 GPU"), (8, 1, "8 GPUs")])
def test_auto_is_resolved_with_its_reason(gpus: int, resolved: int, reason: str) -> None:
    said: list[str] = []
    wanted = ResourcesConfig(workers=1)
    assert resolve_gpus(wanted, [node(8, gpus)], None, said.append) == resolved
    assert said == [f"resources.gpus_per_worker auto is {resolved}: the cluster has {reason}"]


def test_workers_that_do_not_fit_are_refused_with_the_figures() -> None:
    with pytest.raises(ResourcesError, match=r"asks for 9 workers with 1 CPU cores.*room for 4.*CPU cores: 4"):
        resolve_gpus(ResourcesConfig(workers=9, gpus_per_worker=0), [node(4)], None, lambda text: None)


def test_elastic_run_is_refused_only_below_its_least() -> None:
    assert resolve_gpus(ResourcesConfig(workers=(4, 9), gpus_per_worker=0), [node(4)], None, lambda text: None) == 0
    with pytest.raises(ResourcesError, match=r"asks for 5 workers .*room for 4"):
        resolve_gpus(ResourcesConfig(workers=(5, 9), gpus_per_worker=0), [node(4)], None, lambda text: None)


def test_auto_does_not_move_a_run_from_gpus_to_cpus() -> None:
    with pytest.raises(ResourcesError, match=r"computed on GPUs so far.*gpus_per_worker=0"):
        resolve_gpus(ResourcesConfig(workers=1), [node(8)], "cuda", lambda text: None)


def test_node_is_accepted_when_it_sees_what_the_driver_sees(dataset: Path, tmp_path: Path) -> None:
    from data_pipeline.dataset import Dataset

    (tmp_path / "mark").write_bytes(b"")
    answer = answer_for_node(str(tmp_path), "mark", "n1", {str(dataset): Dataset.open(dataset).fingerprint}, {})
    assert answer == NodeAnswer(versions=library_versions())
    _judge(node(), answer, tmp_path, "mark")


def test_node_is_refused_when_its_storage_is_another_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    answer = answer_for_node(str(tmp_path / "there"), "mark", "n1", {}, {})  # the driver's mark is not there
    with pytest.raises(StorageError, match=r"worker-1 \(10\.0\.0\.7\) does not see what the driver wrote.*mount it"):
        _judge(node(), answer, tmp_path, "mark")
    blind = NodeAnswer(versions=library_versions())
    with pytest.raises(StorageError, match="writes there what the driver does not see"):
        _judge(node(), blind, tmp_path, "mark")


def test_node_is_refused_when_its_dataset_is_missing_or_another_one(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").write_bytes(b"")
    missing = answer_for_node(str(tmp_path), "mark", "n1", {str(tmp_path / "none"): "f"}, {})
    with pytest.raises(DatasetError, match=r"none: node worker-1 .*every node sees"):
        _judge(node(), missing, tmp_path, "mark")
    other = answer_for_node(str(tmp_path), "mark", "n1", {str(dataset): "another"}, {})
    with pytest.raises(DatasetError, match=r"fingerprint .* there, and another for the driver"):
        _judge(node(), other, tmp_path, "mark")


def test_node_is_refused_when_it_does_not_see_the_weights_to_begin_with(tmp_path: Path) -> None:
    (tmp_path / "mark").write_bytes(b"")
    missing = answer_for_node(str(tmp_path), "mark", "n1", {}, {str(tmp_path / "model"): "f"})
    with pytest.raises(RunRefusedError, match=r"initialize_from, .*model: node worker-1 .* every node sees them"):
        _judge(node(), missing, tmp_path, "mark")


def test_node_is_refused_when_it_runs_other_software(tmp_path: Path) -> None:
    (tmp_path / "mark-n1").write_bytes(b"")
    answer = NodeAnswer(versions={**library_versions(), "torch": "1.0"})
    with pytest.raises(ResourcesError, match=r"torch 1\.0 there, .* for the driver.*one environment"):
        _judge(node(), answer, tmp_path, "mark")


@pytest.mark.parametrize("name", ["flex", "flash3", "flash4"])
@pytest.mark.parametrize("gpus_per_worker", [0, "auto"])
def test_attention_for_gpus_is_refused_when_the_workers_compute_on_cpus(
    monkeypatch: pytest.MonkeyPatch, gpus_per_worker: Any, name: Any
) -> None:
    monkeypatch.setattr(preflight, "live_nodes", lambda: [node()])
    config = RunConfig(
        name="run",
        data=DataConfig(dataset="data"),
        model=ModelConfig(attention=name),
        resources=ResourcesConfig(workers=1, gpus_per_worker=gpus_per_worker),
    )
    with pytest.raises(AttentionBackendError, match=rf"^model\.attention is '{name}', which cannot be used: .*Use "):
        preflight.check_cluster(
            config,
            Cluster(attached=False, dashboard_url=None),
            {},
            weights={},
            device_so_far=None,
            say=lambda text: None,
        )
