"""What the driver does about a hang: the record, the file of stacks, the cause, the processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.faults.config import FaultsConfig
from cluster.faults.failure import WorkerFailure
from cluster.faults.hang import Heartbeat
from cluster.faults.hang_watch import HangWatch, Tell
from cluster.faults.rules import root_cause
from cluster.faults.stacks import end_process, take_stacks
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import StoragePath, list_names, write_atomically

STACKS = """stacks of rank {rank}
Thread 0x1 (most recent call first):
  File "queue.py", line 3 in get

Thread 0x2 (most recent call first):
  File "x.py", line 3 in nap
  File "ray_worker.py", line 9 in train_worker

Current thread 0x3 (most recent call first):
  File "worker.py", line 1 in main_loop
"""


class Bench:
    """A watch over two ranks, of which one waits for the other, and nodes that the test speaks for."""

    def __init__(self, directory: StoragePath, *, timeout_seconds: float | None = 30.0) -> None:
        write_atomically(directory / "run.json", json.dumps({"attempt": 2}).encode())
        self.directory = directory
        self.now = 100.0
        self.events: list[dict[str, Any]] = []
        self.failures: list[WorkerFailure] = []
        self.said: list[str] = []
        self.ended: list[int] = []
        self.out_of_reach: set[str] = set()
        self.watch = HangWatch(
            directory,
            timeout_seconds=timeout_seconds,
            tell=Tell(event=self.events.append, failure=self.failures.append, say=self.said.append),
            on_nodes=self._on_nodes,
            clock=lambda: self.now,
        )
        self.waiting = Heartbeat(
            rank=0,
            world_size=2,
            node="10.0.0.1",
            node_id="aa",
            pid=11,
            started_ticks=1,
            stacks_fd=3,
            step=8,
            still_seconds=0.0,
            collective="all_reduce",
        )
        self.asleep = replace(
            self.waiting,
            rank=1,
            node="10.0.0.2",
            node_id="bb",
            pid=12,
            step=7,
            collective=None,
            stack=("x.py:3 in nap",),
        )

    def hang(self, *beats: Heartbeat) -> None:
        """Let these ranks stand still for 40 s."""
        began = self.now
        while self.now < began + 40:
            for beat in beats:
                self.watch.hear({"type": "heartbeat", **asdict(replace(beat, still_seconds=self.now - began))})
            self.watch.look()
            self.now += 2

    def stacks(self) -> list[Path]:
        """Files of stacks."""
        return sorted(self.directory.glob("stacks/*"))

    def _on_nodes(self, function: Callable[[Any], Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for node, argument in arguments.items():
            if node in self.out_of_reach:
                continue
            if function is take_stacks:
                answers[node] = {beat.rank: STACKS.format(rank=beat.rank) for beat in argument}
            else:
                assert function is end_process
                assert self.failures, "the cause must be known before the end is noticed"
                self.ended.append(argument.rank)
                answers[node] = True
        return answers


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_hang_is_an_event_with_rank_node_step_and_collective(bench: Bench) -> None:
    bench.hang(bench.waiting, bench.asleep)
    (event,) = bench.events
    assert event["event"] == "hang"
    assert (event["rank"], event["node"], event["step"], event["collective"]) == (1, "10.0.0.2", 7, "all_reduce")
    assert 30 <= event["seconds"] <= 34
    assert event["stacks"] == str(bench.stacks()[0].relative_to(bench.directory))


def test_file_holds_the_stacks_of_all_ranks(bench: Bench) -> None:
    bench.hang(bench.waiting, bench.asleep)
    (path,) = bench.stacks()
    assert path.name.startswith("attempt-2-")
    text = path.read_text()
    assert "rank 1 on node 10.0.0.2: the others wait for it in all_reduce." in text
    assert "stacks of rank 0" in text
    assert "stacks of rank 1" in text
    assert "x.py:3 in nap" in text


def test_culprit_is_ended_and_its_node_avoided(bench: Bench) -> None:
    bench.hang(bench.waiting, bench.asleep)
    assert bench.ended == [1]
    assert bench.watch.avoided_nodes == {"bb"}
    (failure,) = bench.failures
    assert (failure.rank, failure.kind, failure.pid, failure.step) == (1, "hang", 12, 7)
    assert [line.split()[-1] for line in failure.traceback.splitlines()] == ["first):", "nap", "train_worker"]


def test_culprit_is_ended_when_the_storage_takes_no_stacks(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    (bench.directory / "stacks").write_text("no directory")
    bench.hang(bench.waiting, bench.asleep)
    assert bench.ended == [1]
    assert bench.events[0]["stacks"] is None
    assert "x.py:3 in nap" in caplog.text  # they are in the log instead


def test_another_rank_is_ended_when_the_culprit_is_out_of_reach(bench: Bench) -> None:
    bench.out_of_reach = {"bb"}
    bench.hang(bench.waiting)
    bench.hang(bench.waiting, replace(bench.asleep, node_id="bb"))
    assert bench.ended[:1] == [0]
    assert "its node did not answer" in bench.stacks()[-1].read_text()


def test_person_is_told_when_no_worker_can_be_ended(bench: Bench) -> None:
    bench.out_of_reach = {"aa", "bb"}
    bench.hang(bench.waiting, bench.asleep)
    assert bench.said == [
        "no rank has moved for 30 s: taking the stacks of all of them",
        "no worker of the group that hangs could be ended: their nodes do not answer",
    ]


def test_rank_that_never_began_is_the_cause_when_the_others_wait(bench: Bench) -> None:
    bench.hang(bench.waiting)
    assert [(failure.rank, failure.pid) for failure in bench.failures] == [(1, None)]
    assert bench.ended == [0]
    assert bench.watch.avoided_nodes == frozenset()


def test_no_node_is_avoided_when_nobody_stands_out(bench: Bench) -> None:
    bench.hang(bench.waiting, replace(bench.waiting, rank=1, node_id="bb", pid=12))
    assert bench.events[0]["rank"] is None
    assert bench.watch.avoided_nodes == frozenset()
    assert bench.ended == [0]
    assert len(bench.failures) == 1


def test_hang_is_left_alone_when_the_timeout_is_null(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeout_seconds=None)
    bench.hang(bench.waiting, bench.asleep)
    assert (bench.events, bench.ended) == ([], [])


def test_straggler_is_an_event_when_it_is_slow_for_two_minutes(bench: Bench) -> None:
    for second in range(0, 130, 2):
        bench.now += 2
        for beat, share in ((bench.waiting, 0.4), (bench.asleep, 0.8)):
            samples = 5 * second
            counted = replace(beat, step=second, step_samples=samples, busy_samples=int(share * samples))
            bench.watch.hear({"type": "heartbeat", **asdict(counted)})
        bench.watch.look()
    (event,) = bench.events
    assert (event["event"], event["rank"], event["node"]) == ("straggler", 1, "10.0.0.2")
    assert event["ratio"] == pytest.approx(2.0, abs=0.1)


def test_oldest_files_of_stacks_are_removed_when_there_are_many(bench: Bench) -> None:
    (bench.directory / "stacks").mkdir()
    for number in range(30):
        old = bench.directory / "stacks" / f"attempt-1-{number:06}.txt"
        old.touch()
        os.utime(old, (number, number))
    bench.hang(bench.waiting, bench.asleep)
    names = [path.name for path in bench.stacks()]
    assert len(names) == 20
    assert names[0] == "attempt-1-000011.txt"


def test_stacks_are_kept_when_the_run_lies_in_an_object_store(bucket: str) -> None:
    run = ObjectPath(f"{bucket}/runs/austen")
    for number in range(25):
        write_atomically(run / "stacks" / f"attempt-1-{number:06}.txt", b"")
    bench = Bench(run)
    bench.hang(bench.waiting, bench.asleep)
    names = list_names(run / "stacks")
    assert len(names) == 20
    kept = (run / bench.events[0]["stacks"]).read_text()
    assert "stacks of rank 0" in kept
    assert "stacks of rank 1" in kept


def test_hang_is_the_root_cause_when_its_remedy_ended_another_rank(bench: Bench) -> None:
    bench.out_of_reach = {"bb"}
    bench.hang(bench.waiting, bench.asleep)
    (hang,) = bench.failures
    ended = replace(hang, rank=0, kind="lost_worker", error="its process ended without a word")
    assert root_cause([ended, hang]) is hang


@pytest.mark.parametrize("seconds", [0.0, 19.9])
def test_timeout_is_refused_when_a_late_heartbeat_could_pass_for_a_hang(seconds: float) -> None:
    with pytest.raises(ValueError, match="20 or more tells hanging from being slow"):
        FaultsConfig(hang_timeout_seconds=seconds)
