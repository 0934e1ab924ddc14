"""Who hangs, from heartbeats and a clock that the test winds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from heartbeats import beat_of

from cluster.faults.hang import GroupWatch, HangVerdict, Heartbeat, beat_seconds, name_culprits, silent_seconds

TIMEOUT_SECONDS = 30.0
WAITING: dict[str, Any] = {"collective": "all_reduce", "stack": ("c10d:1 in all_reduce",)}
ELSEWHERE: dict[str, Any] = {"stack": ("data:5 in read",)}


@dataclass
class Bench:
    """A watch and the clock it reads."""

    now: float = 1000.0

    def __post_init__(self) -> None:
        self.watch = GroupWatch(TIMEOUT_SECONDS, lambda: self.now)

    def run(self, seconds: int, *beats: Heartbeat, still_from: float = 0.0) -> HangVerdict | None:
        """Let time pass; a heartbeat every two seconds of each of these ranks, standing still for ever longer."""
        for second in range(1, seconds + 1):
            self.now += 1
            if second % 2 == 0:
                for beat in beats:
                    self.watch.hear(replace(beat, still_seconds=still_from + second))
            verdict = self.watch.judge()
            if verdict is not None:
                return verdict
        return None


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    for rank in (0, 1):
        made.watch.hear(beat_of(rank))
    return made


def test_group_is_not_judged_when_one_rank_moves(bench: Bench) -> None:
    for _ in range(100):
        assert bench.run(2, beat_of(0, **WAITING), still_from=500) is None
        bench.watch.hear(beat_of(1))


def test_group_hangs_when_nobody_moves_for_the_timeout(bench: Bench) -> None:
    began = bench.now
    verdict = bench.run(100, beat_of(0, **WAITING), beat_of(1, **ELSEWHERE))
    assert verdict is not None
    assert verdict.ranks == (1,)
    assert verdict.collective == "all_reduce"
    assert TIMEOUT_SECONDS <= bench.now - began <= TIMEOUT_SECONDS + 2


def test_silent_rank_is_named_within_the_timeout_when_the_other_waits_for_it(bench: Bench) -> None:
    began = bench.now
    verdict = bench.run(100, beat_of(0, **WAITING))
    assert verdict is not None
    assert (verdict.ranks, verdict.certain) == ((1,), True)
    assert "no heartbeat" in verdict.reason
    assert TIMEOUT_SECONDS <= bench.now - began <= TIMEOUT_SECONDS + 2


def test_rank_is_named_when_it_never_began() -> None:
    bench = Bench()
    verdict = bench.run(100, beat_of(0, **WAITING))
    assert verdict is not None
    assert (verdict.ranks, set(verdict.heartbeats)) == ((1,), {0})


def test_only_rank_is_named_when_it_falls_silent() -> None:
    bench = Bench()
    bench.watch.hear(beat_of(0, world_size=1))
    verdict = bench.run(100)
    assert verdict is not None
    assert (verdict.ranks, verdict.certain) == ((0,), True)


def test_group_is_not_judged_when_all_attempts_ended(bench: Bench) -> None:
    for rank in (0, 1):
        bench.watch.hear(beat_of(rank, ended=True))
    assert bench.run(1000) is None


def test_rank_that_ended_is_not_blamed_when_another_hangs(bench: Bench) -> None:
    bench.watch.hear(beat_of(0, ended=True))
    verdict = bench.run(100, beat_of(1, **ELSEWHERE))
    assert verdict is not None
    assert verdict.ranks == (1,)


def test_group_is_not_judged_when_its_workers_are_known_to_be_gone(bench: Bench) -> None:
    bench.watch.forget()
    assert bench.run(1000) is None


def test_late_heartbeats_are_left_alone_when_their_workers_are_known_to_be_gone(bench: Bench) -> None:
    bench.watch.forget()
    assert bench.watch.hear(beat_of(0)) == "gone"
    assert bench.run(1000) is None


def test_nothing_is_judged_when_the_timeout_is_null() -> None:
    watch = GroupWatch(None, lambda: 0.0)
    watch.hear(beat_of(0, still_seconds=1e6))
    assert watch.judge() is None


def test_time_begins_anew_when_the_driver_was_away(bench: Bench) -> None:
    assert bench.watch.judge() is None
    bench.now += 500
    assert bench.watch.judge() is None
    assert bench.run(int(TIMEOUT_SECONDS) - 1) is None


def test_verdict_is_not_repeated_when_the_same_processes_beat_on(bench: Bench) -> None:
    hanging = beat_of(0, **WAITING), beat_of(1, **ELSEWHERE)
    assert bench.run(100, *hanging) is not None
    assert bench.run(int(TIMEOUT_SECONDS) - 2, *hanging, still_from=30) is None


def test_verdict_is_repeated_when_nobody_could_be_ended(bench: Bench) -> None:
    hanging = beat_of(0, **WAITING), beat_of(1, **ELSEWHERE)
    assert bench.run(100, *hanging) is not None
    assert bench.run(100, *hanging, still_from=30) is not None


def test_former_ranks_are_forgotten_when_another_group_beats(bench: Bench) -> None:
    assert bench.watch.hear(beat_of(0, world_size=1, pid=200)) == "new"
    for _ in range(50):
        bench.watch.hear(beat_of(0, world_size=1, pid=200))
        assert bench.run(2) is None


@pytest.mark.parametrize(
    ("beats", "ranks"),
    [
        ([{**WAITING}, {**ELSEWHERE}, {**WAITING}], (1,)),
        ([{**WAITING}, {**ELSEWHERE, "step": 4}, {**ELSEWHERE, "step": 5}], (1,)),
        ([{**WAITING}, {**WAITING}, {**WAITING, "step": 4}], (2,)),
        ([{**ELSEWHERE}, {**ELSEWHERE}, {"stack": ("model:7 in forward",)}], (2,)),
        ([{**WAITING}, {**WAITING}, {"collective": "broadcast", "stack": ("c10d:9 in broadcast",)}], (2,)),
    ],
    ids=["outside", "outside and behind", "behind", "elsewhere", "in another collective"],
)
def test_culprit_is_named_when_one_rank_stands_out(beats: list[dict[str, Any]], ranks: tuple[int, ...]) -> None:
    group = {rank: beat_of(rank, world_size=3, **changes) for rank, changes in enumerate(beats)}
    verdict = name_culprits(group, (), seconds=40)
    assert (verdict.ranks, verdict.certain) == (ranks, True)


def test_silent_rank_has_come_as_far_as_those_who_wait_for_it() -> None:
    verdict = name_culprits({0: beat_of(0, step=9, **WAITING), 1: beat_of(1, step=5)}, [1], seconds=40)
    assert verdict.step == 9


def test_rank_that_beats_is_in_the_step_that_it_says() -> None:
    verdict = name_culprits({0: beat_of(0, step=9, **WAITING), 1: beat_of(1, step=8)}, (), seconds=40)
    assert verdict.step == 8


def test_nobody_is_named_for_certain_when_all_wait_in_one_collective() -> None:
    group = {rank: beat_of(rank, **WAITING) for rank in (0, 1)}
    verdict = name_culprits(group, (), seconds=40)
    assert (verdict.ranks, verdict.certain, verdict.collective) == ((0, 1), False, "all_reduce")


def test_heartbeats_of_all_ranks_stay_bounded_when_the_group_is_large() -> None:
    assert beat_seconds(8) == 2.0
    assert 1024 / beat_seconds(1024) <= 50
    assert silent_seconds(1024) > 2 * beat_seconds(1024)
