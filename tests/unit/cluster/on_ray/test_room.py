"""How many workers a run starts with, with the cluster's answers given."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray
from ray._private.state import state as ray_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData

from cluster.config import ResourcesConfig
from cluster.on_ray import room as ray_room
from cluster.on_ray.room import NODE_GRACE_SECONDS, Room, workers_for, workers_that_fit


class Nodes:
    """A cluster of nodes with CPU cores, and a clock that waiting moves."""

    def __init__(self) -> None:
        self.free: dict[str, int] = {}
        self.alive: set[str] = set()
        self.draining: set[str] = set()
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def add(self, **cores: int) -> None:
        self.free |= cores
        self.alive |= set(cores)

    def bury(self, node: str) -> None:
        """Ray counts a node as dead."""
        self.free.pop(node, None)
        self.alive.discard(node)

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        self.events.append((seconds, event))

    def pause(self) -> bool:
        self.now += 0.5
        for due in [each for each in self.events if each[0] <= self.now]:
            self.events.remove(due)
            due[1]()
        return True


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr(ray_room, "available_by_node", lambda: {n: {"CPU": float(c)} for n, c in made.free.items()})
    monkeypatch.setattr(ray_room, "draining_nodes", lambda: dict.fromkeys(made.draining))
    monkeypatch.setattr(ray_room, "counted_alive", lambda: set(made.alive))
    return made


def test_workers_leave_room_for_an_evaluation_where_it_costs_fewest_workers(nodes: Nodes) -> None:
    nodes.add(a=4, b=3)
    resources = ResourcesConfig(workers=(1, 8), cpus_per_worker=2)
    nobody = Room(resources, 0, lambda node: None)
    assert nobody.now() == 3
    assert Room(resources, 0, lambda node: None, spare={"CPU": 1.0}).now() == 3  # the third core of b
    assert Room(resources, 0, lambda node: None, spare={"CPU": 2.0}).now() == 2
    assert Room(resources, 0, lambda node: None, spare={"CPU": 5.0}).now() == 3  # nowhere: nothing is given up


def test_workers_do_not_grow_into_the_room_of_an_evaluation(nodes: Nodes) -> None:
    nodes.add(a=1)  # beside the two that run
    room = Room(ResourcesConfig(workers=(1, 4)), 0, lambda node: None, spare={"CPU": 1.0})
    assert room.growth(["a", "a"]) is None
    nodes.free["a"] = 2
    assert room.growth(["a", "a"]) == 3


def room_of(workers: int | tuple[int, int], problem: str | None = None) -> Room:
    return Room(ResourcesConfig(workers=workers), 0, lambda node: problem)


class Mended:
    """A node that is unfit for some examinations."""

    def __init__(self, *problems: str | None) -> None:
        self.problems = list(problems)

    def examine(self, node: str) -> str | None:
        return self.problems.pop(0)


def wait_for_examination(room: Room) -> None:
    import threading

    room.now()
    for thread in threading.enumerate():
        if thread.name == "node-check":
            thread.join()


def group(state: int, job: int, *nodes: bytes) -> bytes:
    """A placement group as Ray keeps it, with a bundle on each node."""
    made = PlacementGroupTableData(state=state, creator_job_id=ray.JobID.from_int(job).binary())
    for node in nodes:
        made.bundles.add(node_id=node)
    serialized: bytes = made.SerializeToString()
    return serialized


def test_workers_of_our_own_placement_groups_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [
        group(PlacementGroupTableData.CREATED, 3, b"\xaa", b"\xaa", b"\xbb"),
        group(PlacementGroupTableData.REMOVED, 3, b"\xbb"),
        group(PlacementGroupTableData.PENDING, 3, b""),
        group(PlacementGroupTableData.CREATED, 4, b"\xbb"),
    ]
    accessor = SimpleNamespace(get_placement_group_table=lambda: groups)
    monkeypatch.setattr(ray_state, "_connect_and_get_accessor", lambda: accessor)
    context = SimpleNamespace(get_job_id=lambda: ray.JobID.from_int(3).hex())
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert ray_room.reserved_by_node() == {"aa": 2, "bb": 1}


@pytest.mark.parametrize(
    ("gpus", "resources", "kind"),
    [
        (0, {"accelerator_type:H100": 1.0}, "cpu"),
        (1, {"accelerator_type:H100": 1.0, "GPU": 8.0}, "H100"),
        (1, {"GPU": 8.0}, "gpu"),
    ],
)
def test_devices_are_named_as_ray_names_them(
    gpus: int, resources: dict[str, float], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = {"Alive": False, "Resources": {"accelerator_type:A100": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [dead, {"Alive": True, "Resources": resources}])
    assert ray_room.kind_of_devices(gpus) == kind


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "fit"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 4.0}, 3, 0, 1),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 2),
        ({"CPU": 1.0, "GPU": 2.0}, 1, 1, 1),
        ({"CPU": 8.0}, 1, 1, 0),
        ({}, 1, 0, 0),
    ],
)
def test_workers_that_fit(resources: dict[str, float], cpus: int, gpus: int, fit: int) -> None:
    assert workers_that_fit(resources, cpus_per_worker=cpus, gpus_per_worker=gpus) == fit


@pytest.mark.parametrize(("workers", "room", "chosen"), [((2, 4), 9, 4), ((2, 4), 3, 3), ((2, 4), 0, 2), (3, 9, 3)])
def test_workers_are_as_many_as_there_is_room_for_within_the_bounds(
    workers: int | tuple[int, int], room: int, chosen: int
) -> None:
    assert workers_for(ResourcesConfig(workers=workers), room) == chosen


def test_node_that_is_taken_back_has_no_room(nodes: Nodes) -> None:
    nodes.add(a=2, b=2, c=2)
    room = room_of((1, 6))
    assert room.now() == 6
    nodes.draining.add("a")
    assert room.now() == 4
    assert room.left_out == frozenset()  # Ray itself puts no worker there


def test_own_workers_count_as_room(nodes: Nodes) -> None:
    nodes.add(a=0, b=1)
    room = room_of((1, 4))
    assert room.growth(["a", "a"]) == 3
    nodes.free["b"] = 0
    assert room.growth(["a", "a"]) is None


def test_node_that_joins_gets_workers_once_it_was_examined(nodes: Nodes) -> None:
    nodes.add(a=1)
    room = room_of((1, 2))
    nodes.add(b=1)
    assert room.left_out == {"b"}
    wait_for_examination(room)
    assert (room.left_out, room.now()) == (frozenset(), 2)


def test_node_that_joins_gets_none_when_it_is_unfit(nodes: Nodes) -> None:
    nodes.add(a=1)
    room = room_of((1, 2), "another torch runs there")
    nodes.add(b=1)
    wait_for_examination(room)
    assert (room.left_out, room.now()) == ({"b"}, 1)
    assert (room.refusals(), room.refusals()) == (["another torch runs there"], [])


def test_unfit_node_is_examined_again_after_a_minute(nodes: Nodes) -> None:
    nodes.add(a=1)
    examined = Mended("no storage", "no storage", None)
    room = Room(ResourcesConfig(workers=(1, 2)), 0, examined.examine, clock=lambda: nodes.now)
    nodes.add(b=1)
    wait_for_examination(room)
    nodes.now = 59.0
    wait_for_examination(room)
    assert len(examined.problems) == 2
    nodes.now = 60.0
    wait_for_examination(room)
    assert (room.left_out, room.refusals()) == ({"b"}, ["no storage"])  # the same once
    nodes.now = 120.0
    wait_for_examination(room)
    assert (room.left_out, room.now()) == (frozenset(), 2)


def test_nodes_are_seen_to_change_until_the_room_is_settled_anew(nodes: Nodes) -> None:
    nodes.add(a=1)
    room = room_of((1, 2), "unfit")
    room.settle([], set(), pause=nodes.pause)
    assert not room.nodes_changed
    nodes.add(b=1)
    assert room.nodes_changed
    room.settle([], set(), pause=nodes.pause)
    assert not room.nodes_changed


def test_run_of_a_fixed_size_waits_for_nothing_here(nodes: Nodes) -> None:
    assert room_of(2).settle(["a", "b"], {"b"}, pause=nodes.pause, clock=lambda: nodes.now) == 2
    assert nodes.now == 0.0


def test_first_group_takes_what_there_is(nodes: Nodes) -> None:
    nodes.add(a=1, b=2)
    assert room_of((1, 8)).settle([], set(), pause=nodes.pause, clock=lambda: nodes.now) == 3


def test_group_goes_on_with_fewer_when_the_lost_node_stays_away(nodes: Nodes) -> None:
    nodes.add(a=1, b=1)
    room = room_of((1, 2))
    nodes.later(15.0, lambda: nodes.bury("b"))  # until then Ray still offers its core
    assert room.settle(["a", "b"], {"b"}, pause=nodes.pause, clock=lambda: nodes.now) == 1
    assert nodes.now == pytest.approx(15.0)


def test_group_goes_on_at_full_strength_when_a_node_comes_back_in_time(nodes: Nodes) -> None:
    nodes.add(a=1, b=1)
    room = room_of((1, 2))
    nodes.bury("b")
    nodes.later(NODE_GRACE_SECONDS / 2, lambda: nodes.add(b2=1))

    def pause() -> bool:
        wait_for_examination(room)
        return nodes.pause()

    assert room.settle(["a", "b"], {"b"}, pause=pause, clock=lambda: nodes.now) == 2
    assert nodes.now < NODE_GRACE_SECONDS


def test_group_waits_until_what_the_last_one_had_is_free(nodes: Nodes) -> None:
    nodes.add(a=0, b=0)
    room = room_of((1, 2))
    nodes.later(3.0, lambda: nodes.add(a=1, b=1))
    assert room.settle(["a", "b"], set(), pause=nodes.pause, clock=lambda: nodes.now) == 2
    assert nodes.now == pytest.approx(3.0)


def test_group_starts_with_the_least_when_nothing_is_free_for_long(nodes: Nodes) -> None:
    nodes.add(a=0, b=0)
    assert room_of((1, 2)).settle(["a", "b"], set(), pause=nodes.pause, clock=lambda: nodes.now) == 1


def test_waiting_ends_when_the_run_is_to_stop(nodes: Nodes) -> None:
    nodes.add(a=0)
    assert room_of((1, 2)).settle(["a"], set(), pause=lambda: False, clock=lambda: nodes.now) == 1
