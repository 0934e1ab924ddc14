"""The watch over the nodes while workers train, with the cluster's answers given."""

from __future__ import annotations

from typing import Any, cast

import pytest

from cluster.config import ResourcesConfig
from cluster.faults.inquest import Seat
from cluster.on_ray import room_watch
from cluster.on_ray.room import Room
from cluster.on_ray.room_watch import RoomWatch

SEATS = {rank: Seat(rank=rank, node_id=f"n{rank}", node=f"10.0.0.{rank}", pid=rank, actor_id="") for rank in (0, 1)}


class FixedRoom:
    """Room as a test wants it."""

    def __init__(self, elastic: bool) -> None:
        self.elastic = elastic
        self.avoids = False
        self.wanted: int | None = None
        self.reach = 2

    def within_reach(self) -> int:
        return self.reach

    def growth(self, own: list[str]) -> int | None:
        assert own == ["n0", "n1"]
        return self.wanted

    def refusals(self) -> list[str]:
        return []


class Scene:
    """A group of two workers at work."""

    def __init__(self, elastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.draining: dict[str, float | None] = {}
        self.said: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.room = FixedRoom(elastic)
        monkeypatch.setattr(room_watch, "draining_nodes", lambda: dict(self.draining))
        self.watch = RoomWatch(
            ResourcesConfig(workers=(1, 4) if elastic else 2),
            cast(Room, self.room),
            say=self.said.append,
            write_event=self.events.append,
            clock=lambda: self.now,
        )
        self.watch.begin(2)

    def look(self, *, training: bool = True) -> bool:
        self.now += 16.0
        return self.watch.look(SEATS if training else {}, training=training)


@pytest.fixture
def elastic(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(True, monkeypatch)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(False, monkeypatch)


def test_nothing_is_wanted_of_workers_while_nodes_stay_as_they_are(elastic: Scene) -> None:
    assert not elastic.look()
    assert (elastic.watch.regroup, elastic.said, elastic.events) == ("no", [], [])


def test_workers_end_at_the_next_checkpoint_when_there_is_room_for_more(elastic: Scene) -> None:
    elastic.room.wanted = 4
    elastic.look()
    elastic.look()
    assert elastic.watch.regroup == "at_checkpoint"
    assert elastic.said == ["there is room for 4 workers: they take over at the next checkpoint"]


def test_wish_is_withdrawn_when_the_room_is_gone_before_the_checkpoint(elastic: Scene) -> None:
    elastic.room.wanted = 4
    elastic.look()
    elastic.room.wanted = None
    elastic.look()
    assert elastic.watch.regroup == "no"


def test_run_of_a_fixed_size_does_not_grow(fixed: Scene) -> None:
    fixed.room.wanted = 4
    fixed.look()
    assert fixed.watch.regroup == "no"


@pytest.mark.parametrize("size", ["elastic", "fixed"])
def test_workers_save_now_when_a_node_of_theirs_is_taken_back(size: str, request: pytest.FixtureRequest) -> None:
    scene: Scene = request.getfixturevalue(size)
    scene.draining = {"n1": 1234.5, "n9": None}
    scene.look()
    scene.look()
    assert scene.watch.regroup == "now"
    assert scene.events == [
        {"event": "preempted", "node": "10.0.0.1", "deadline_unix_seconds": 1234.5, "ranks": [1]}
    ]  # once, and not about a node of others


def test_next_group_is_not_told_what_the_last_one_was(elastic: Scene) -> None:
    elastic.draining = {"n1": None}
    elastic.look()
    elastic.watch.end(SEATS)
    assert (elastic.watch.regroup, elastic.watch.before) == ("no", ["n0", "n1"])
    elastic.watch.end({})  # the controller ends after its workers
    assert elastic.watch.before == ["n0", "n1"]


def test_person_is_told_what_the_run_waits_for(fixed: Scene) -> None:
    fixed.room.reach = 1
    assert not fixed.look(training=False)
    assert fixed.said == [
        "waiting for a node: the run needs room for 2 workers, and the live nodes have room for 1 beside what others "
        "hold",
    ]


def test_waiting_ends_when_fewer_workers_would_do(elastic: Scene) -> None:
    elastic.room.reach = 1
    assert elastic.look(training=False)
    elastic.room.reach = 0
    assert not elastic.look(training=False)


def test_run_is_not_said_to_wait_while_workers_speak(fixed: Scene) -> None:
    fixed.room.reach = 1
    fixed.now = 10.0
    fixed.watch.heard()
    fixed.now = 0.0
    fixed.look(training=False)
    assert fixed.said == []
