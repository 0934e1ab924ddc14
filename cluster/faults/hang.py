"""Judging a group of ranks by their heartbeats: whether it stands still, and because of whom.

Pure: heartbeats and a clock come in, verdicts go out. A rank that waits for others stands as still as the one that
hangs, so time is counted for the whole group: as long as any rank moves, nobody hangs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

_BEAT_SECONDS = 2.0
_BEATS_PER_SECOND = 50.0
"""Heartbeats that the driver takes from all ranks together: above 100 ranks each of them sends fewer."""
_SILENT_SECONDS = 10.0
_SILENT_BEATS = 3
_ABSENCE_SECONDS = 10.0
"""A driver that was itself away for longer, asleep or waiting for its disk, holds nobody's silence against them."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """How one rank stands, as it tells the driver every few seconds."""

    rank: int
    world_size: int
    node: str
    """Address of the node."""
    node_id: str
    """Ray's name of the node."""
    pid: int
    started_ticks: int
    """When the process started, in clock ticks since the node did: tells it from a later one of the same number."""
    stacks_fd: int
    """Descriptor in the process that SIGUSR2 has all its stacks written to."""
    step: int | None
    """Step in work; None before the first."""
    still_seconds: float
    """Since when the training thread has not moved."""
    collective: str | None
    """Function of torch.distributed that it is in."""
    stack: tuple[str, ...] = ()
    """Where it stands, innermost first; empty while it moves."""
    step_samples: int = 0
    """Times it was found in the work of a step, so far."""
    busy_samples: int = 0
    """Times among these that it was not waiting in a collective."""
    ended: bool = False
    """The last heartbeat of an attempt that ended by itself."""

    @property
    def process(self) -> tuple[str, int, int]:
        """What tells this process from every other one."""
        return self.node_id, self.pid, self.started_ticks


@dataclass(frozen=True, kw_only=True)
class HangVerdict:
    """A group that hangs."""

    seconds: float
    """How long nobody moved."""
    ranks: tuple[int, ...]
    """Who the others wait for; every rank where nothing tells."""
    certain: bool
    """Whether these ranks stand out from the others."""
    reason: str
    """What tells them from the others."""
    step: int | None
    """Step in work where it stands still."""
    collective: str | None
    """What the others wait in."""
    heartbeats: dict[int, Heartbeat]
    """The last one of each rank that was ever heard."""


@dataclass(frozen=True)
class _Heard:
    beat: Heartbeat
    at: float

    @property
    def moved_at(self) -> float:
        return self.at - self.beat.still_seconds


def beat_seconds(world_size: int) -> float:
    """Seconds between the heartbeats of a rank."""
    return max(_BEAT_SECONDS, world_size / _BEATS_PER_SECOND)


def silent_seconds(world_size: int) -> float:
    """Seconds without a heartbeat after which a rank counts as silent."""
    return max(_SILENT_SECONDS, _SILENT_BEATS * beat_seconds(world_size))


class GroupWatch:
    """Finds a group that hangs.

    Before a rank's first heartbeat nothing is judged of it alone: the time counts from the group's first heartbeat, so
    that a rank that never begins is found too. Ranks whose attempt ended are not waited for.

    Args:
        timeout_seconds: How long no rank may move. At least twice the time after which a rank counts as silent, which
            is 20 s up to 166 ranks. None: nothing is judged.
        clock: Seconds, monotonic.
    """

    def __init__(self, timeout_seconds: float | None, clock: Callable[[], float]) -> None:
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._world_size = 0
        self._since = 0.0
        self._heard: dict[int, _Heard] = {}
        self._looked_at: float | None = None
        self._judged: set[tuple[str, int, int]] = set()
        self._gone: set[tuple[str, int, int]] = set()
        self._quiet_until = 0.0

    def hear(self, beat: Heartbeat) -> Literal["known", "new", "gone"]:
        """Take a heartbeat.

        Returns:
            `new` for the first one of another group of workers; `gone` for one that came late, of workers that are no
            group any more.
        """
        now = self._clock()
        if beat.process in self._gone or (beat.process in self._judged and now < self._quiet_until):
            return "gone"
        self._judged.discard(beat.process)  # whoever was to end it did not
        known = self._heard.get(beat.rank)
        other = beat.world_size != self._world_size or (known is not None and known.beat.process != beat.process)
        if other:
            self._heard.clear()
        if not self._heard:
            self._world_size, self._since = beat.world_size, now
        self._heard[beat.rank] = _Heard(beat, now)
        return "new" if other else "known"

    def forget(self) -> None:
        """Forget the group: its workers are known to be gone, or about to be."""
        self._gone |= self._judged | {heard.beat.process for heard in self._heard.values()}
        self._heard.clear()

    def judge(self) -> HangVerdict | None:
        """Whether the group hangs. A verdict is not repeated while its processes may still be about to end."""
        now = self._clock()
        absent = self._looked_at is not None and now - self._looked_at > _ABSENCE_SECONDS
        self._looked_at = now
        if absent:
            self._since = now
            self._heard = {rank: replace(heard, at=now) for rank, heard in self._heard.items()}
        if self._timeout_seconds is None or all(heard.beat.ended for heard in self._heard.values()):
            return None
        missing = [rank for rank in range(self._world_size) if rank not in self._heard]
        moved_at = max(heard.moved_at for heard in self._heard.values())
        still = now - (max(moved_at, self._since) if missing else moved_at)
        silent_after = silent_seconds(self._world_size)
        if still < max(self._timeout_seconds, 2 * silent_after):
            return None
        silent = [rank for rank, heard in self._heard.items() if not heard.beat.ended and now - heard.at > silent_after]
        verdict = name_culprits(
            {rank: heard.beat for rank, heard in self._heard.items()}, sorted(missing + silent), seconds=still
        )
        self._judged = {heard.beat.process for heard in self._heard.values()}
        self._quiet_until = now + max(self._timeout_seconds, 2 * silent_after)
        self._heard.clear()
        return verdict


def name_culprits(beats: dict[int, Heartbeat], silent: Sequence[int], *, seconds: float) -> HangVerdict:
    """Who keeps a group that stands still from going on.

    Args:
        beats: The last heartbeat of each rank.
        silent: Ranks that give no sign of life, the ones never heard among them.
        seconds: How long the group has stood still.
    """
    active = {rank: beat for rank, beat in beats.items() if not beat.ended and rank not in silent}
    waiting = {rank: beat for rank, beat in active.items() if beat.collective is not None}
    outside = sorted(rank for rank in active if rank not in waiting)
    names = Counter(beat.collective for beat in waiting.values())
    collective = names.most_common(1)[0][0] if names else None

    def verdict(ranks: Sequence[int], reason: str, *, certain: bool = True) -> HangVerdict:
        return HangVerdict(
            seconds=seconds,
            ranks=tuple(ranks),
            certain=certain,
            reason=reason,
            step=_step_of(beats, active, ranks),
            collective=collective,
            heartbeats=beats,
        )

    if silent:
        waits = f"; the others wait in {collective}" if collective is not None else ""
        return verdict(silent, f"no heartbeat comes from it{waits}", certain=bool(active) or len(silent) == 1)
    if outside and waiting:
        return verdict(_furthest_behind(active, outside), f"the others wait for it in {collective}")
    behind = _furthest_behind(active, sorted(active))
    if len(behind) < len(active):
        return verdict(behind, "it is in an earlier step than the others")
    common, count = Counter(beat.stack for beat in active.values()).most_common(1)[0]
    if len(active) / 2 < count < len(active):
        return verdict(
            sorted(rank for rank, beat in active.items() if beat.stack != common), "it stands elsewhere than the others"
        )
    alone = len(active) == 1
    return verdict(sorted(active), "no rank moves" if alone else "no rank stands out from the others", certain=alone)


def _step_of(beats: dict[int, Heartbeat], active: dict[int, Heartbeat], ranks: Sequence[int]) -> int | None:
    """The culprits' step. One that fell silent has come as far as those who wait for it, whatever it said last."""
    known = [active[rank].step for rank in ranks if rank in active] or [beat.step for beat in beats.values()]
    return max((step for step in known if step is not None), default=None)


def _furthest_behind(beats: dict[int, Heartbeat], ranks: Sequence[int]) -> list[int]:
    steps = {rank: beats[rank].step or 0 for rank in ranks}
    return [rank for rank, step in steps.items() if step == min(steps.values())]
