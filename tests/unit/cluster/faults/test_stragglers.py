"""Who straggles, from heartbeats and a clock that the test winds."""

from __future__ import annotations

import pytest
from heartbeats import beat_of

from cluster.faults.stragglers import StragglerWatch


class Bench:
    """Three ranks that work for a share of each step, and wait for the rest of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = StragglerWatch(lambda: self.now)
        self._samples = [0, 0, 0]
        self._busy = [0.0, 0.0, 0.0]

    def minute(self, *shares: float) -> list[tuple[int, float]]:
        """One window."""
        self._beat()
        for rank, share in enumerate(shares):
            self._samples[rank] += 300
            self._busy[rank] += 300 * share
        self._beat()
        self.now += 60
        return [(found.rank, found.ratio) for found in self.watch.judge()]

    def _beat(self) -> None:
        for rank in range(3):
            samples, busy = self._samples[rank], int(self._busy[rank])
            self.watch.hear(beat_of(rank, world_size=3, step_samples=samples, busy_samples=busy))


def test_straggler_is_told_once_when_it_is_slow_in_two_windows() -> None:
    bench = Bench()
    assert [bench.minute(0.4, 0.4, 0.9) for _ in range(4)] == [[], [(2, 2.25)], [], []]


def test_straggler_is_told_again_when_it_had_recovered() -> None:
    bench = Bench()
    shares = [0.9, 0.9, 0.4, 0.9, 0.9]
    assert [bool(bench.minute(0.4, 0.4, share)) for share in shares] == [False, True, False, False, True]


@pytest.mark.parametrize("shares", [(0.9, 0.9, 0.95), (0.05, 0.05, 0.2)], ids=["alike", "all waiting for the network"])
def test_nobody_is_a_straggler_when_ranks_differ_little(shares: tuple[float, ...]) -> None:
    bench = Bench()
    assert not any(bench.minute(*shares) for _ in range(5))


def test_nobody_is_a_straggler_when_a_window_holds_too_little_training() -> None:
    bench = Bench()
    bench.watch.hear(beat_of(0, world_size=3, step_samples=90, busy_samples=90))
    bench.now += 60
    assert bench.watch.judge() == []
