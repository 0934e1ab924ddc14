"""What the driver gathers about workers that failed: who sat where, what they said, and how the silent ones ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.faults.failure import FailureKind, WorkerFailure
from cluster.faults.rules import Ending, classify, follows_another

_HEARING_SECONDS = 1.0
"""A silent death is known some 0.1 s after it, an error when its worker has said so: both may come after the first
error that followed from them."""
_SEARCH_SECONDS = 5.0
"""Longest wait for a cause where all that is known are errors that follow from another."""
_SILENT_ENDS: Mapping[FailureKind, str] = {
    "preemption": "its node was taken back by the platform",
    "lost_node": "its node vanished",
    "lost_worker": "its process ended without a word: killed from outside, or crashed",
}
"""Where Ray's own words, a paragraph on what may have happened, say no more."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where one rank runs."""

    rank: int
    node_id: str
    node: str
    """Address of the node."""
    pid: int
    actor_id: str


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """How a node of the cluster stands."""

    alive: bool
    """Whether Ray counts it and its raylet answers: Ray itself takes some 15 s to notice that it does not."""
    draining: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failure of a group of workers, ready to be judged."""

    number: str
    """Names it in the mailbox, where Ray's controller waits for the verdict."""
    failures: tuple[WorkerFailure, ...]
    fatal: str | None
    """Why a retry would be in vain, where a worker knew."""


class Inquest:
    """Gathers the messages of one group of workers after another.

    Args:
        is_dead: Whether the process of an actor, by Ray's id, has ended.
        node_state: How a node, by Ray's id, stands now.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        is_dead: Callable[[str], bool],
        node_state: Callable[[str], NodeState],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._is_dead = is_dead
        self._node_state = node_state
        self._seats: dict[int, Seat] = {}
        self._said: dict[int, WorkerFailure] = {}
        self._steps: dict[int, int | None] = {}
        self._fatal: str | None = None
        self._case: Mapping[str, Any] | None = None
        self._since = 0.0
        self._closed: set[str] = set()

    @property
    def seats(self) -> Mapping[int, Seat]:
        """The workers at work, by rank; empty while there are none."""
        return self._seats

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take a message if it is of the inquest's kinds; whether it was. Heartbeats are looked at and left."""
        kind = message["type"]
        details = {key: value for key, value in message.items() if key != "type"}
        if kind == "seat":
            seat = Seat(**details)
            self._seats[seat.rank] = seat
        elif kind == "failure":
            failure = WorkerFailure(**details)
            if self._is_at_work(failure.rank, failure.pid):
                self._said.setdefault(failure.rank, failure)
        elif kind == "fatal":
            if self._is_at_work(details["rank"], details["pid"]):
                self._fatal = self._fatal or details["text"]
        elif kind == "group_failed":
            if details["number"] not in self._closed and self._case is None:
                self._case, self._since = details, self._clock()
        else:
            if kind == "heartbeat":
                self._steps[message["rank"]] = message["step"]
            return False
        return True

    @property
    def fatal(self) -> str | None:
        """Why the run cannot go on, where a worker knew."""
        return self._fatal

    def case(self) -> Case | None:
        """The failure to judge, once enough is known of it; None before, and while all is well."""
        if self._case is None:
            return None
        waited = self._clock() - self._since
        if self._fatal is None and waited < _HEARING_SECONDS:
            return None
        failures = self._failures([Ending(**ending) for ending in self._case["endings"]])
        if self._fatal is None and waited < _SEARCH_SECONDS and all(follows_another(each) for each in failures):
            return None
        return Case(number=self._case["number"], failures=failures, fatal=self._fatal)

    def close(self) -> None:
        """Forget the group: it was judged, or it ended."""
        if self._case is not None:
            self._closed.add(self._case["number"])
        self._case, self._fatal = None, None
        self._seats, self._said, self._steps = {}, {}, {}

    def _is_at_work(self, rank: int, pid: int | None) -> bool:
        """Whether a process is of the group at work: the dead of an earlier one may speak late."""
        known = self._seats.get(rank)
        return known is not None and pid in (known.pid, None)

    def _failures(self, endings: list[Ending]) -> tuple[WorkerFailure, ...]:
        """What is known of every rank that failed: its own words, or else how Ray and its node stand."""
        found = dict(self._said)
        for ending in endings:
            if ending.rank not in found:
                found[ending.rank] = self._silent(ending)
        for rank, seat in self._seats.items():
            if rank not in found and (self._is_dead(seat.actor_id) or not self._node_state(seat.node_id).alive):
                found[rank] = self._silent(Ending(rank=rank, error="", text="", died=True))
        return tuple(found[rank] for rank in sorted(found))

    def _silent(self, ending: Ending) -> WorkerFailure:
        """A rank that said nothing ended at the latest when others began to say that something is wrong."""
        seat = self._seats.get(ending.rank)
        state = self._node_state(seat.node_id) if seat is not None else NodeState(alive=True, draining=False)
        kind = classify(ending, node_alive=state.alive, node_draining=state.draining)
        return WorkerFailure(
            rank=ending.rank,
            node=seat.node if seat is not None else "unknown",
            pid=seat.pid if seat is not None else None,
            kind=kind,
            step=self._steps.get(ending.rank),
            error=_SILENT_ENDS.get(kind, ending.error) if ending.died else ending.error,
            traceback="",
            time_unix_seconds=min([self._since, *(each.time_unix_seconds for each in self._said.values())]),
        )
