"""Nodes that a rank hung on get no workers, as long as there is room without them."""

from __future__ import annotations

import pytest

from cluster.config import ResourcesConfig
from cluster.on_ray import room as ray_room
from cluster.on_ray.room import Room


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """A run of two workers on three nodes with room for one each."""
    monkeypatch.setattr(ray_room, "available_by_node", lambda: {name: {"CPU": 1.0} for name in ("a", "b", "c")})
    monkeypatch.setattr(ray_room, "reserved_by_node", dict)
    monkeypatch.setattr(ray_room, "counted_alive", lambda: {"a", "b", "c"})
    monkeypatch.setattr(ray_room, "draining_nodes", dict)
    return Room(ResourcesConfig(workers=2), 0, lambda node_id: None)


def test_node_is_left_out_when_the_others_have_room(room: Room) -> None:
    assert room.avoid(frozenset({"b"}))
    assert room.left_out == {"b"}
    assert room.avoids


def test_nodes_are_used_again_when_the_others_are_too_few(room: Room) -> None:
    room.avoid(frozenset({"b"}))
    assert not room.avoid(frozenset({"a", "b"}))
    assert room.left_out == frozenset()
    assert not room.avoids


def test_node_that_is_taken_back_is_no_room(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_room, "draining_nodes", lambda: {"a": None})
    assert not room.avoid(frozenset({"b"}))


def test_nodes_are_used_again_when_others_hold_the_rest(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_room, "available_by_node", lambda: {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}, "c": {}})
    assert not room.avoid(frozenset({"b"}))


def test_what_the_run_itself_holds_is_room(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_room, "available_by_node", lambda: {"a": {}, "b": {}, "c": {"CPU": 1.0}})
    monkeypatch.setattr(ray_room, "reserved_by_node", lambda: {"a": 1, "b": 1})
    assert room.avoid(frozenset({"b"}))
    assert room.within_reach() == 2
