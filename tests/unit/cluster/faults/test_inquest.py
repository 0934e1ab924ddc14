"""What is gathered of a group of workers that failed, with the cluster's answers given."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from cluster.faults.failure import WorkerFailure
from cluster.faults.inquest import Case, Inquest, NodeState, Seat
from cluster.faults.rules import Ending, root_cause

GLOO = "RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.2]:9138"


class Scene:
    """Two ranks on two nodes, a clock that a test moves, and what the cluster answers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.dead: set[str] = set()
        self.nodes = {"n0": NodeState(alive=True, draining=False), "n1": NodeState(alive=True, draining=False)}
        self.inquest = Inquest(
            clock=lambda: self.now, is_dead=lambda actor: actor in self.dead, node_state=lambda node: self.nodes[node]
        )
        self.seat()

    def seat(self, first_pid: int = 10) -> None:
        for rank in (0, 1):
            seat = Seat(
                rank=rank,
                node_id=f"n{rank}",
                node=f"10.0.0.{rank}",
                pid=first_pid + rank,
                actor_id=f"a{first_pid + rank}",
            )
            assert self.inquest.take({"type": "seat", **asdict(seat)})

    def says(self, rank: int, error: str, *, pid: int | None = None, **changes: Any) -> None:
        failure = WorkerFailure(
            rank=rank,
            node=f"10.0.0.{rank}",
            pid=10 + rank if pid is None else pid,
            kind="error",
            step=7,
            error=error,
            traceback="Traceback",
            time_unix_seconds=self.now,
        )
        assert self.inquest.take({"type": "failure", **asdict(failure), **changes})

    def fails(self, *endings: Ending, number: str = "f1") -> None:
        report = {"type": "group_failed", "number": number, "endings": [asdict(each) for each in endings]}
        assert self.inquest.take(report)

    def case(self, after_seconds: float) -> Case | None:
        self.now += after_seconds
        return self.inquest.case()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def raised(rank: int, error: str) -> Ending:
    return Ending(rank=rank, error=error, text=error, died=False)


def died(rank: int) -> Ending:
    return Ending(rank=rank, error="ActorDiedError: ...", text="ActorDiedError: ...", died=True)


def test_there_is_no_case_while_all_is_well(scene: Scene) -> None:
    assert scene.case(1000) is None


def test_worker_is_believed_before_ray(scene: Scene) -> None:
    scene.says(1, "ValueError: bad row")
    scene.fails(raised(1, "ValueError: bad row"))
    case = scene.case(1.0)
    assert case is not None
    (failure,) = case.failures
    assert (failure.rank, failure.step, failure.traceback) == (1, 7, "Traceback")
    assert case.number == "f1"


def test_case_waits_a_moment_for_what_others_have_to_say(scene: Scene) -> None:
    scene.fails(raised(1, "ValueError: bad row"))
    assert scene.case(0.5) is None
    assert scene.case(0.5) is not None


def test_silent_rank_is_found_when_another_noticed_first(scene: Scene) -> None:
    scene.says(1, GLOO)
    scene.fails(raised(1, GLOO))
    assert scene.case(1.0) is None  # an error that follows from another is no cause
    scene.dead.add("a10")
    case = scene.case(0.2)
    assert case is not None
    cause = root_cause(case.failures)
    assert (cause.rank, cause.kind, cause.pid) == (0, "lost_worker", 10)
    assert cause.error == "its process ended without a word: killed from outside, or crashed"
    assert cause.time_unix_seconds <= case.failures[1].time_unix_seconds


def test_node_is_found_lost_when_its_raylet_does_not_answer(scene: Scene) -> None:
    scene.says(1, GLOO)
    scene.fails(raised(1, GLOO))
    scene.nodes["n0"] = NodeState(alive=False, draining=False)
    case = scene.case(1.0)
    assert case is not None
    assert root_cause(case.failures).kind == "lost_node"


def test_loss_is_a_preemption_when_the_node_was_announced_to_go(scene: Scene) -> None:
    scene.nodes["n1"] = NodeState(alive=False, draining=True)
    scene.fails(died(1))
    case = scene.case(1.0)
    assert case is not None
    assert root_cause(case.failures).kind == "preemption"


def test_case_is_closed_without_a_cause_when_none_is_found(scene: Scene) -> None:
    scene.says(1, GLOO)
    scene.fails(raised(1, GLOO))
    assert scene.case(4.9) is None
    case = scene.case(0.2)
    assert case is not None
    assert [each.error for each in case.failures] == [GLOO]


def test_case_comes_at_once_when_a_worker_knows_that_a_retry_is_in_vain(scene: Scene) -> None:
    scene.inquest.take({"type": "fatal", "text": "the disk is full", "rank": 0, "pid": 10})
    scene.fails(raised(0, "NotRetriedError: the disk is full"))
    case = scene.case(0.0)
    assert case is not None
    assert case.fatal == "the disk is full"


@pytest.mark.parametrize("pid", [10, 99])
def test_fatal_words_of_an_earlier_group_end_nothing_when_they_come_late(scene: Scene, pid: int) -> None:
    late = {"type": "fatal", "text": "the disk is full", "rank": 0, "pid": pid}
    scene.inquest.close()
    scene.inquest.take(late)
    scene.seat(first_pid=20)
    scene.inquest.take(late)
    assert scene.inquest.fatal is None


def test_step_of_a_silent_rank_is_that_of_its_last_heartbeat(scene: Scene) -> None:
    assert not scene.inquest.take({"type": "heartbeat", "rank": 1, "step": 41})  # others want it too
    scene.fails(died(1))
    case = scene.case(1.0)
    assert case is not None
    assert case.failures[0].step == 41


def test_late_words_of_an_earlier_group_are_not_those_of_the_next(scene: Scene) -> None:
    scene.fails(died(1))
    assert scene.case(1.0) is not None
    scene.inquest.close()
    assert scene.inquest.seats == {}
    scene.says(0, "ValueError: late")
    scene.seat(first_pid=20)
    scene.says(0, "ValueError: later still", pid=10)
    scene.fails(died(1), number="f2")
    case = scene.case(1.0)
    assert case is not None
    assert [each.rank for each in case.failures] == [1]


def test_report_is_judged_once_when_it_comes_again(scene: Scene) -> None:
    scene.fails(died(1))
    assert scene.case(1.0) is not None
    scene.inquest.close()
    scene.fails(died(1))
    assert scene.case(10.0) is None
