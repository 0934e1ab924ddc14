"""The driver's watch over the nodes while workers train: some are taken back, some come, some do not come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.config import ResourcesConfig
from cluster.faults.inquest import Seat
from cluster.on_ray.room import Room, draining_nodes

if TYPE_CHECKING:
    from cluster.train_loop import Regroup

_DRAIN_SECONDS = 2.0
"""Between two looks at the notices of the platform, which come some 30 s or more ahead."""
_ROOM_SECONDS = 15.0
"""Between two looks for room, and how long no worker may speak before the run is said to wait for a node."""


class RoomWatch:
    """Watches the nodes of one group of workers after another.

    Args:
        resources: What the run asks for.
        room: Of the run.
        say: Tells the person what the run waits for.
        write_event: Puts an event into the record.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        room: Room,
        *,
        say: Callable[[str], None],
        write_event: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources = resources
        self._room = room
        self._say = say
        self._write_event = write_event
        self._clock = clock
        self._workers = 0
        self._heard_at = clock()
        self._next_drain_look = 0.0
        self._next_room_look = 0.0
        self._announced: set[str] = set()
        self.regroup: Regroup = "no"
        """What is wanted of the workers."""
        self.reason = ""
        """Why other workers are to take over."""
        self.before: list[str] = []
        """Node id of each worker of the group that ended last."""

    def begin(self, workers: int) -> None:
        """Begin with a group of so many workers."""
        self._workers = workers
        self._heard_at = self._clock()
        self._next_room_look = self._heard_at + _ROOM_SECONDS
        self.regroup, self.reason, self.before = "no", "", []

    def end(self, seats: Mapping[int, Seat]) -> None:
        """The workers have ended, or will with the next verdict."""
        self.before = [seat.node_id for seat in seats.values()] or self.before
        self.regroup = "no"

    def heard(self) -> None:
        """A worker spoke."""
        self._heard_at = self._clock()

    def look(self, seats: Mapping[int, Seat], *, training: bool) -> bool:
        """Look at the nodes, from time to time.

        Args:
            seats: Where the workers run.
            training: Whether they train.

        Returns:
            True where Ray waits for workers that no node has room for, and the run could go on with fewer, or with
            nodes that it avoids.
        """
        now = self._clock()
        if now >= self._next_drain_look:
            self._next_drain_look = now + _DRAIN_SECONDS
            self._look_for_notices(seats)
        if now < self._next_room_look:
            return False
        self._next_room_look = now + _ROOM_SECONDS
        if training and len(seats) == self._workers:
            self._look_for_growth(seats)
            return False
        return not training and now - self._heard_at > _ROOM_SECONDS and self._lacks_room()

    def _look_for_notices(self, seats: Mapping[int, Seat]) -> None:
        ours = {seat.node_id: seat.node for seat in seats.values()}
        for node_id, deadline in draining_nodes().items():
            if node_id not in ours or node_id in self._announced:
                continue
            self._announced.add(node_id)
            ranks = sorted(seat.rank for seat in seats.values() if seat.node_id == node_id)
            self._write_event(
                {"event": "preempted", "node": ours[node_id], "deadline_unix_seconds": deadline, "ranks": ranks}
            )
            self.regroup, self.reason = "now", f"node {ours[node_id]} is taken back"

    def _look_for_growth(self, seats: Mapping[int, Seat]) -> None:
        if not self._room.elastic or self.regroup == "now":
            return
        wanted = self._room.growth([seat.node_id for seat in seats.values()])
        for refusal in self._room.refusals():
            self._say(f"a node that joined gets no worker: {refusal}")
        if wanted is None:
            self.regroup, self.reason = "no", ""
        elif self.regroup == "no":
            self.regroup, self.reason = "at_checkpoint", f"there is room for {wanted} workers"
            self._say(f"{self.reason}: they take over at the next checkpoint")

    def _lacks_room(self) -> bool:
        room = self._room.within_reach()
        if room >= self._workers:
            return False
        if self._room.avoids or (self._room.elastic and room >= self._resources.min_workers):
            return True
        self._say(
            f"waiting for a node: the run needs room for {self._workers} workers, and the live nodes have room for "
            f"{room} beside what others hold"
        )
        return False
