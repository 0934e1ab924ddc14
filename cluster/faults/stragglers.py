"""Ranks that keep the others waiting, found from the heartbeats of all. Pure: heartbeats and a clock come in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from cluster.faults.hang import Heartbeat

_WINDOW_SECONDS = 60.0
_WINDOW_SAMPLES = 100
"""Samples a window must have: of 100, a share is known to within 0.05 (one standard deviation) at worst."""
_STRAGGLER_RATIO = 1.5
"""Below it, uneven batches (padding, document lengths) and neighbours on a machine explain the difference."""
_STRAGGLER_DIFFERENCE = 0.2
"""Four standard deviations of a share over the fewest samples of a window."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank that keeps the others waiting."""

    rank: int
    node: str
    ratio: float
    """Time in its own part of the steps over the median of the other ranks' times."""


class StragglerWatch:
    """Finds ranks that keep the others waiting, in two windows of a minute in a row.

    All ranks take the same time for a step; the slow one spends it on its own work and the others wait for it in
    collectives. Where these waits are the GPU's and not the training thread's, nothing is seen.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_at = clock()
        self._first: dict[int, Heartbeat] = {}
        self._last: dict[int, Heartbeat] = {}
        self._suspects: set[int] = set()
        self._told: set[int] = set()

    def hear(self, beat: Heartbeat) -> None:
        """Take a heartbeat."""
        self._first.setdefault(beat.rank, beat)
        self._last[beat.rank] = beat

    def forget(self) -> None:
        """Begin anew, with other workers."""
        self._first, self._last = {}, {}
        self._suspects, self._told = set(), set()
        self._begun_at = self._clock()

    def judge(self) -> list[Straggler]:
        """Stragglers that were not told of before; empty in the course of a window."""
        now = self._clock()
        if now - self._begun_at < _WINDOW_SECONDS:
            return []
        slow = {found.rank: found for found in self._of_window()}
        self._begun_at, self._first = now, dict(self._last)
        confirmed = self._suspects & slow.keys()
        self._suspects = set(slow)
        new = [slow[rank] for rank in sorted(confirmed - self._told)]
        self._told = (self._told | confirmed) & slow.keys()
        return new

    def _of_window(self) -> list[Straggler]:
        shares: dict[int, float] = {}
        for rank, last in self._last.items():
            samples = last.step_samples - self._first[rank].step_samples
            if samples < _WINDOW_SAMPLES:
                return []
            shares[rank] = (last.busy_samples - self._first[rank].busy_samples) / samples
        if len(shares) < 2 or len(shares) < max(last.world_size for last in self._last.values()):
            return []
        found = []
        for rank, share in shares.items():
            others = statistics.median(other for each, other in shares.items() if each != rank)
            ratio = share / max(others, 1 / _WINDOW_SAMPLES)
            if ratio >= _STRAGGLER_RATIO and share - others >= _STRAGGLER_DIFFERENCE:
                found.append(Straggler(rank=rank, node=self._last[rank].node, ratio=round(ratio, 2)))
        return found
