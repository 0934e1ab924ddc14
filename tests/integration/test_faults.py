"""Causes and what follows from them on the real command: memory, errors that repeat, nodes that go and come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, new_cluster
from injection import inject, startup_code
from processes import finish, start, wait_until
from runs import event_rows, events_of, logged_steps, pretrain, record_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LAW_FP32 = 1e-5
"""Largest relative difference of losses between topologies, in fp32: the Resume law's."""


def assert_within_the_law(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in reference]
    for row, expected in zip(rows, reference, strict=True):
        for key in ("train/loss", "eval/loss"):
            if key in expected:
                assert row[key] == pytest.approx(expected[key], rel=LAW_FP32)


def test_run_finishes_with_half_the_micro_batch_when_memory_runs_out(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    fault = (
        "if batch.step == 15 and rows > 2:\n    import torch\n    raise torch.OutOfMemoryError('CUDA out of memory.')"
    )
    environment = inject(tmp_path / "fault", fault)
    log = tmp_path / "log"
    command = [*pretrain(tmp_path, dataset), "faults.on_oom=halve_micro_batch", "faults.max_out_of_memory=0"]
    assert finish(start(*command, log=log, environment=environment), log, 600) == 0
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
    assert process.wait(600) == 1
    assert "step 15 failed twice with the same error" in log.read_text()
    lost = [row for row in event_rows(tmp_path) if row["event"] == "worker_lost"]
    assert [(row["kind"], row["step"]) for row in lost] == [("error", 15)] * 2
    assert events_of(tmp_path)[-1] == "failed"
    page = (tmp_path / "smoke" / "postmortem.md").read_text()
    assert "ValueError: bad row at" in page


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head that trains nothing; workers take a second for a step as long as the file `slow` is there."""
    (tmp_path / "slow").touch()
    fault = f"if os.path.exists({str(tmp_path / 'slow')!r}):\n    time.sleep(1.0)"
    made = new_cluster(head_cpus=0, startup_code=startup_code(fault))
    try:
        yield made.start()
    finally:
        made.stop()


def test_run_goes_on_with_the_nodes_left_and_takes_a_new_one_at_a_checkpoint(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(cpus=1, address=f"127.0.0.{number}") for number in (2, 3)]
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    process = start(
        *pretrain(tmp_path, dataset),
        "resources.workers=[1,2]",
        log=log,
        environment={**cluster.environment, "RAY_ADDRESS": f"127.0.0.1:{cluster.port}", "PYTHONPATH": ""},
    )
    wait_until(lambda: logged_steps(tmp_path) >= 15, process, 300)
    cluster.kill_node(nodes[1])
    wait_until(lambda: "resumed" in events_of(tmp_path), process, 300)
    cluster.add_node(cpus=1, address="127.0.0.4")
    wait_until(lambda: "regrouped" in events_of(tmp_path), process, 300)
    os.unlink(tmp_path / "slow")
    assert finish(process, log, 600) == 0
    rows = event_rows(tmp_path)
    assert next(row for row in rows if row["event"] == "worker_lost")["kind"] == "lost_node"
    sizes = [row["layout"]["world_size"] for row in rows if row["event"] in ("started", "resumed")]
    assert sizes == [2, 1, 2]
    regrouped = next(row for row in rows if row["event"] == "regrouped")
    later = [row for row in rows if row["event"] == "resumed"][-1]
    assert later["from_step"] == regrouped["step"]  # at a checkpoint: nothing was lost for it
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))


def test_run_leaves_a_node_that_is_taken_back_before_its_deadline(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    for number in (2, 3):
        cluster.add_node(cpus=1, address=f"127.0.0.{number}")
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    process = start(
        *pretrain(tmp_path, dataset),
        "resources.workers=[1,2]",
        log=log,
        environment={**cluster.environment, "RAY_ADDRESS": f"127.0.0.1:{cluster.port}", "PYTHONPATH": ""},
    )
    wait_until(lambda: logged_steps(tmp_path) >= 12, process, 300)
    cluster.drain("127.0.0.3", deadline_seconds=120)
    wait_until(lambda: "regrouped" in events_of(tmp_path), process, 300)
    os.unlink(tmp_path / "slow")
    assert finish(process, log, 600) == 0
    rows = event_rows(tmp_path)
    preempted = next(row for row in rows if row["event"] == "preempted")
    assert (preempted["node"], len(preempted["ranks"])) == ("127.0.0.3", 1)
    regrouped = next(row for row in rows if row["event"] == "regrouped")
    assert regrouped["step"] % 10 != 0  # saved at once, not at the next checkpoint
    resumed = next(row for row in rows if row["event"] == "resumed")
    assert (resumed["from_step"], resumed["layout"]["world_size"]) == (regrouped["step"], 1)
    assert "worker_lost" not in events_of(tmp_path)
    assert_within_the_law(record_of(tmp_path), record_of(undisturbed))
