"""Causes and what follows from them on the real command: memory, errors that repeat, nodes that go and come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from clusters import Cluster, running_cluster
from injection import inject, startup_code
from processes import finish, start, wait_until
from runs import event_rows, events_of, logged_steps, pretrain, record_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

LAW_FP32 = 1e-5
"""Largest relative difference of losses between topologies, in fp32: the Resume law's."""
MOMENT_SECONDS = 600.0
"""Longest wait for a moment of the run: a start of workers or two, on a machine that does much else."""
WHOLE_SECONDS = 900.0
"""From the last moment to the end of the command, there."""


def assert_within_the_law(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in reference]
    for row, expected in zip(rows, reference, strict=True):
        for key in ("train/loss", "eval/loss"):
            if key in expected:
                assert row[key] == pytest.approx(expected[key], rel=LAW_FP32)


def sizes_of(storage: Path) -> list[int]:
    """Workers of each attempt."""
    return [row["layout"]["world_size"] for row in event_rows(storage) if row["event"] in ("started", "resumed")]


def steps_since_resumed(storage: Path) -> int:
    """Steps in the record after the one that the last attempt resumed from."""
    resumed = [row["from_step"] for row in event_rows(storage) if row["event"] == "resumed"]
    return logged_steps(storage) - resumed[-1]


def test_run_finishes_with_half_the_micro_batch_when_memory_runs_out(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    fault = (
        "if batch.step == 15 and rows > 2:\n    import torch\n    raise torch.OutOfMemoryError('CUDA out of memory.')"
    )
    environment = inject(tmp_path / "fault", fault)
    log = tmp_path / "log"
    command = [*pretrain(tmp_path, dataset), "faults.on_oom=halve_micro_batch", "faults.max_out_of_memory=0"]
    assert finish(start(*command, log=log, environment=environment), log, WHOLE_SECONDS) == 0
    rows = event_rows(tmp_path)
    lost = next(row for row in rows if row["event"] == "worker_lost")
    assert (lost["kind"], lost["step"]) == ("out_of_memory", 15)
    halved = next(row for row in rows if row["event"] == "micro_batch_halved")
    assert (halved["failed"], halved["taken"]) == (4, 2)
    resumed = next(row for row in rows if row["event"] == "resumed")
    assert (resumed["from_step"], resumed["layout"]["micro_batch_size"]) == (10, 2)
    facts = json.loads((tmp_path / "smoke" / "run.json").read_bytes())
    assert [(each["failed"], each["taken"]) for each in facts["micro_batches_after_out_of_memory"]] == [(4, 2)]
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))


def test_run_stops_when_the_same_error_comes_twice_at_a_step(dataset: Path, tmp_path: Path) -> None:
    environment = inject(tmp_path / "fault", "if batch.step == 15:\n    raise ValueError(f'bad row at {id(batch):#x}')")
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), log=log, environment=environment)
    assert process.wait(WHOLE_SECONDS) == 1
    assert "step 15 failed twice with the same error" in log.read_text()
    lost = [row for row in event_rows(tmp_path) if row["event"] == "worker_lost"]
    assert [(row["kind"], row["step"]) for row in lost] == [("error", 15)] * 2
    assert events_of(tmp_path)[-1] == "failed"
    page = (tmp_path / "smoke" / "postmortem.md").read_text()
    assert "ValueError: bad row at" in page


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head that trains nothing; as long as the file `slow` is there, a step takes as many seconds as it says."""
    slow = tmp_path / "slow"
    slow.write_text("1.0")
    fault = f"try:\n    time.sleep(float(open({str(slow)!r}).read()))\nexcept FileNotFoundError:\n    pass"
    with running_cluster(head_cpus=0, startup_code=startup_code(fault)) as made:
        yield made


def start_elastic(cluster: Cluster, dataset: Path, storage: Path, *, workers: str) -> tuple[Popen[bytes], Path]:
    """A run on the cluster with a range of workers, and its log."""
    log = storage / "log"
    command = [*pretrain(storage, dataset), f"resources.workers={workers}"]
    return start(*command, log=log, environment=cluster.driver_environment), log


def test_run_goes_on_with_the_nodes_left_and_takes_a_new_one_at_a_checkpoint(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(cpus=1, address=f"127.0.0.{number}") for number in (2, 3)]
    cluster.wait_for_nodes()
    process, log = start_elastic(cluster, dataset, tmp_path, workers="[1,2]")
    wait_until(lambda: logged_steps(tmp_path) >= 15, process, MOMENT_SECONDS)
    cluster.kill_node(nodes[1])
    wait_until(lambda: "resumed" in events_of(tmp_path), process, MOMENT_SECONDS)
    cluster.add_node(cpus=1, address="127.0.0.4")
    wait_until(lambda: "regrouped" in events_of(tmp_path), process, MOMENT_SECONDS)
    os.unlink(tmp_path / "slow")
    assert finish(process, log, WHOLE_SECONDS) == 0
    rows = event_rows(tmp_path)
    assert next(row for row in rows if row["event"] == "worker_lost")["kind"] == "lost_node"
    assert sizes_of(tmp_path) == [2, 1, 2]
    regrouped = next(row for row in rows if row["event"] == "regrouped")
    later = [row for row in rows if row["event"] == "resumed"][-1]
    assert later["from_step"] == regrouped["step"]  # at a checkpoint: nothing was lost for it
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))


def test_run_trains_on_as_many_workers_as_there_is_room_for_when_nodes_come_and_go(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow").write_text("2.0")  # nodes are looked for every 15 s, and taken two looks later at most
    first, second = (cluster.add_node(cpus=1, address=f"127.0.0.{number}") for number in (2, 3))
    cluster.wait_for_nodes()
    process, log = start_elastic(cluster, dataset, tmp_path, workers="[1,4]")
    wait_until(lambda: logged_steps(tmp_path) >= 2, process, MOMENT_SECONDS)
    pair = cluster.add_node(cpus=2, address="127.0.0.4")
    wait_until(lambda: sizes_of(tmp_path)[1:] and steps_since_resumed(tmp_path) > 2, process, MOMENT_SECONDS)
    for node in (second, pair):
        cluster.kill_node(node)
    wait_until(lambda: len(sizes_of(tmp_path)) > 2, process, MOMENT_SECONDS)
    cluster.add_node(cpus=2, address="127.0.0.5")
    wait_until(lambda: len(sizes_of(tmp_path)) > 3, process, MOMENT_SECONDS)
    os.unlink(tmp_path / "slow")
    assert finish(process, log, WHOLE_SECONDS) == 0
    assert sizes_of(tmp_path) == [2, 4, 1, 3]
    assert first.poll() is None
    rows = [row for row in event_rows(tmp_path) if row["event"] in ("regrouped", "worker_lost", "resumed")]
    assert [row["event"] for row in rows] == ["regrouped", "resumed", "worker_lost", "resumed", "regrouped", "resumed"]
    assert rows[2]["kind"] == "lost_node"
    for regrouped, resumed in (rows[:2], rows[4:]):
        assert resumed["from_step"] == regrouped["step"]  # at a checkpoint: nothing was lost for it
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))


def test_run_leaves_a_node_that_is_taken_back_before_its_deadline(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    for number in (2, 3):
        cluster.add_node(cpus=1, address=f"127.0.0.{number}")
    cluster.wait_for_nodes()
    process, log = start_elastic(cluster, dataset, tmp_path, workers="[1,2]")
    wait_until(lambda: logged_steps(tmp_path) >= 12, process, MOMENT_SECONDS)
    cluster.drain("127.0.0.3", deadline_seconds=120)
    wait_until(lambda: "regrouped" in events_of(tmp_path), process, MOMENT_SECONDS)
    os.unlink(tmp_path / "slow")
    assert finish(process, log, WHOLE_SECONDS) == 0
    rows = event_rows(tmp_path)
    preempted = next(row for row in rows if row["event"] == "preempted")
    assert (preempted["node"], len(preempted["ranks"])) == ("127.0.0.3", 1)
    regrouped = next(row for row in rows if row["event"] == "regrouped")
    assert regrouped["step"] % 10 != 0  # saved at once, not at the next checkpoint
    resumed = next(row for row in rows if row["event"] == "resumed")
    assert (resumed["from_step"], resumed["layout"]["world_size"]) == (regrouped["step"], 1)
    assert "worker_lost" not in events_of(tmp_path)
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))
