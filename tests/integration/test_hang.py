"""A rank that hangs in the real command: found in the time that is set, named with its stack, replaced."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, running_cluster
from processes import finish, start, training_workers, wait_until
from runs import event_rows, events_of, logged_steps, pretrain, record_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

TIMEOUT_SECONDS = 30
NOTICE_SECONDS = 10.0
"""A heartbeat, a look, and the start of a process that takes the stacks, on a machine that is busy."""
WHOLE_SECONDS = 900.0
"""Two starts of workers and the time between them, on a machine that does much else."""
START_SECONDS = 600.0
"""One start and the first steps, there."""
SETTING = f"faults.hang_timeout_seconds={TIMEOUT_SECONDS}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing."""
    with running_cluster(head_cpus=0) as made:
        yield made


def hang_of(storage: Path) -> dict[str, Any]:
    """The one event of a hang, its consequences being in order."""
    names = events_of(storage)
    assert names.count("hang") == 1
    assert names.index("hang") < names.index("worker_lost") < names.index("resumed")
    (lost,) = (row for row in event_rows(storage) if row["event"] == "worker_lost")
    assert lost["kind"] == "hang"
    return next(row for row in event_rows(storage) if row["event"] == "hang")


def stacks_of(storage: Path, rank: int) -> str:
    """What the file of stacks says of a rank, from its heading on."""
    text = (storage / "smoke" / hang_of(storage)["stacks"]).read_text()
    return next(part for part in re.split(r"^== ", text, flags=re.MULTILINE) if part.startswith(f"rank {rank},"))


def test_record_is_equal_when_a_worker_is_stopped_in_a_step(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(*pretrain(tmp_path, dataset), SETTING, log=log)
    wait_until(lambda: logged_steps(tmp_path) >= 25, process, START_SECONDS)
    victim = training_workers(process.pid)[-1]
    os.kill(victim, signal.SIGSTOP)
    stopped = time.time()
    assert finish(process, log, WHOLE_SECONDS) == 0
    hang = hang_of(tmp_path)
    assert hang["time_unix_seconds"] - stopped <= TIMEOUT_SECONDS + NOTICE_SECONDS
    stacks = stacks_of(tmp_path, hang["rank"])
    assert f"process {victim}," in stacks
    assert "T (stopped)" in stacks
    assert "train_loop.py" in stacks
    assert "train_loop.py" in stacks_of(tmp_path, 1 - hang["rank"])
    assert not Path(f"/proc/{victim}").exists()
    assert record_of(tmp_path) == record_of(undisturbed)


def test_record_is_equal_when_a_training_thread_falls_asleep(undisturbed: Path, dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    marker = tmp_path / "asleep"
    process = subprocess.Popen(
        [
            *(sys.executable, str(Path(__file__).with_name("asleep.py")), str(marker), "1", "25"),
            *pretrain(tmp_path, dataset),
            SETTING,
        ],
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert finish(process, log, WHOLE_SECONDS) == 0
    hang = hang_of(tmp_path)
    assert (hang["rank"], hang["step"], hang["collective"]) == (1, 25, "all_reduce")
    assert hang["time_unix_seconds"] - marker.stat().st_mtime <= TIMEOUT_SECONDS + NOTICE_SECONDS
    assert "in nap" in stacks_of(tmp_path, 1)
    assert "in all_reduce" in stacks_of(tmp_path, 0)
    assert record_of(tmp_path) == record_of(undisturbed)


def test_node_is_left_out_when_a_rank_hung_on_it(
    cluster: Cluster, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(cpus=1, address=f"127.0.0.{number}") for number in (2, 3, 4)]
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    process = start(
        *pretrain(tmp_path, dataset),
        SETTING,
        log=log,
        environment=cluster.driver_environment,
    )
    wait_until(lambda: logged_steps(tmp_path) >= 25, process, START_SECONDS)
    hung = next(node for node in nodes if cluster.trains(node))
    os.kill(training_workers(hung.pid)[0], signal.SIGSTOP)
    wait_until(lambda: "resumed" in events_of(tmp_path), process, START_SECONDS)
    assert [cluster.trains(node) for node in nodes] == [node is not hung for node in nodes]
    assert finish(process, log, WHOLE_SECONDS) == 0
    assert hang_of(tmp_path)["node"] == f"127.0.0.{2 + nodes.index(hung)}"
    assert record_of(tmp_path) == record_of(undisturbed)
