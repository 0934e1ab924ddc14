"""Several nodes with addresses and directories of their own, and the loss of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Cluster, running_cluster
from processes import finish, start, wait_until
from runs import assert_wandb_complete, event_rows, events_of, logged_steps, pretrain, record_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, as on clusters of GPUs."""
    with running_cluster(head_cpus=0) as made:
        yield made


@pytest.mark.parametrize("spare", ["on what is left", "on a node that joins"])
def test_record_is_equal_when_a_node_is_lost(
    cluster: Cluster, spare: str, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(cpus=1, address=f"127.0.0.{number}") for number in (2, 3)]
    if spare == "on what is left":
        cluster.add_node(cpus=1, address="127.0.0.4")
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    process = start(
        *pretrain(tmp_path, dataset),
        log=log,
        environment=cluster.driver_environment,
    )
    wait_until(lambda: logged_steps(tmp_path) >= 25, process)
    cluster.kill_node(next(node for node in nodes if cluster.trains(node)))
    if spare == "on a node that joins":
        wait_until(lambda: "waiting for a node" in log.read_text(), process)
        cluster.add_node(cpus=1, address="127.0.0.5")
    assert finish(process, log) == 0
    assert events_of(tmp_path).index("worker_lost") < events_of(tmp_path).index("resumed")
    resumed = next(row for row in event_rows(tmp_path) if row["event"] == "resumed")
    assert resumed["layout"]["world_size"] == 2
    assert record_of(tmp_path) == record_of(undisturbed)
    assert_wandb_complete(tmp_path)
