"""The driver's watch over heartbeats: a rank that hangs is named, all stacks are kept, and its process is ended.

Ray Train then replaces the workers, as after any other loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cluster.errors import StorageError
from cluster.faults.failure import WorkerFailure
from cluster.faults.hang import GroupWatch, HangVerdict, Heartbeat
from cluster.faults.stacks import end_process, take_stacks
from cluster.faults.stragglers import StragglerWatch
from cluster.run_directory import RunDirectory
from cluster.storage.operations import StoragePath, list_names, make_directory, remove_files, write_atomically

logger = logging.getLogger(__name__)

STACKS_NAME = "stacks"
_STACKS_KEPT = 20
"""Files of stacks that a run keeps, the newest ones: a few MiB at a thousand ranks each."""
_LOOK_SECONDS = 1.0
_TRAINING = " in train_worker"
"""What only the stack of the training thread holds."""
_BEAT_FIELDS = frozenset(each.name for each in fields(Heartbeat))

OnNodes = Callable[[Callable[[Any], Any], Mapping[str, Any]], dict[str, Any]]
"""Calls a function on nodes, with an argument for each; gives the results of those that answered, by node id."""


@dataclass(frozen=True, kw_only=True)
class Tell:
    """Whom the watch tells what it finds."""

    event: Callable[[dict[str, Any]], None]
    """Writes an event into the record."""
    failure: Callable[[WorkerFailure], object]
    """Takes the cause before the workers' end is noticed."""
    say: Callable[[str], None]
    """Tells the person what goes on."""


class HangWatch:
    """Watches one run's workers.

    Args:
        run_directory: Stacks go to `stacks/` in it.
        timeout_seconds: How long no rank may move; None leaves hangs alone.
        tell: Whom to tell.
        on_nodes: How to reach the nodes.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        run_directory: StoragePath,
        *,
        timeout_seconds: float | None,
        tell: Tell,
        on_nodes: OnNodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_directory = run_directory
        self._tell = tell
        self._on_nodes = on_nodes
        self._clock = clock
        self._group = GroupWatch(timeout_seconds, clock)
        self._stragglers = StragglerWatch(clock)
        self._next_look = 0.0
        self._avoided: set[str] = set()

    @property
    def avoided_nodes(self) -> frozenset[str]:
        """Ray's ids of the nodes that a rank hung on."""
        return frozenset(self._avoided)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a message of type `heartbeat`."""
        beat = Heartbeat(**{key: value for key, value in message.items() if key in _BEAT_FIELDS})
        standing = self._group.hear(beat)
        if standing == "new":
            self._stragglers.forget()
        if standing != "gone":
            self._stragglers.hear(beat)

    def forget(self) -> None:
        """The workers are known to be gone."""
        self._group.forget()
        self._stragglers.forget()

    def look(self) -> None:
        """Judge what was heard, and act on it; does nothing most of the time."""
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        for found in self._stragglers.judge():
            self._tell.event({"event": "straggler", "rank": found.rank, "node": found.node, "ratio": found.ratio})
        verdict = self._group.judge()
        if verdict is not None:
            self._act(verdict)

    def _act(self, verdict: HangVerdict) -> None:
        self._tell.say(f"no rank has moved for {verdict.seconds:.0f} s: taking the stacks of all of them")
        stacks = self._take_stacks(list(verdict.heartbeats.values()))
        path = self._keep(verdict, stacks)
        culprits = [verdict.heartbeats[rank] for rank in verdict.ranks if rank in verdict.heartbeats]
        self._tell.event(_event(verdict, None if path is None else f"{STACKS_NAME}/{path.name}"))
        for rank in verdict.ranks if verdict.certain else verdict.ranks[:1]:
            self._tell.failure(_failure(verdict, rank, stacks.get(rank, "")))
        if verdict.certain:
            self._avoided.update(beat.node_id for beat in culprits)
        self._end(verdict, culprits)

    def _take_stacks(self, beats: Sequence[Heartbeat]) -> dict[int, str]:
        by_node: dict[str, list[Heartbeat]] = {}
        for beat in beats:
            by_node.setdefault(beat.node_id, []).append(beat)
        answers = self._on_nodes(take_stacks, by_node)
        stacks: dict[int, str] = {}
        for node_id, there in by_node.items():
            for beat in there:
                stacks[beat.rank] = answers.get(node_id, {}).get(beat.rank, "its node did not answer")
        return stacks

    def _keep(self, verdict: HangVerdict, stacks: Mapping[int, str]) -> StoragePath | None:
        """Write the file of stacks; None where the storage does not take it, which must not save the rank that hangs.

        The log has the stacks then.
        """
        try:
            return self._write_stacks(verdict, stacks)
        except (OSError, StorageError) as error:
            account = _account(verdict, stacks)
            logger.warning("the stacks could not be written to %s: %s\n%s", self._run_directory, error, account)
            return None

    def _write_stacks(self, verdict: HangVerdict, stacks: Mapping[int, str]) -> StoragePath:
        directory = self._run_directory / STACKS_NAME
        make_directory(directory)
        attempt = RunDirectory(self._run_directory).facts(patient=False).get("attempt", 0)
        path = directory / f"attempt-{attempt}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.txt"
        write_atomically(path, _account(verdict, stacks).encode())
        kept = [name for name in list_names(directory) if name.startswith("attempt-")]
        kept.sort(key=lambda name: (len(name), name))  # the attempt's number has as many digits as it needs
        remove_files(directory / name for name in kept[:-_STACKS_KEPT])
        return path

    def _end(self, verdict: HangVerdict, culprits: Sequence[Heartbeat]) -> None:
        """End the culprits or, where they are out of reach, another rank: all workers are replaced together."""
        others = [beat for rank, beat in sorted(verdict.heartbeats.items()) if beat not in culprits]
        ended = False
        for beat in [*culprits, *others]:
            if ended and not (verdict.certain and beat in culprits):
                break
            ended |= bool(self._on_nodes(end_process, {beat.node_id: beat}).get(beat.node_id))
        if not ended:
            self._tell.say("no worker of the group that hangs could be ended: their nodes do not answer")


def _event(verdict: HangVerdict, stacks: str | None) -> dict[str, Any]:
    rank = verdict.ranks[0]
    beat = verdict.heartbeats.get(rank)
    event: dict[str, Any] = {
        "event": "hang",
        "rank": rank if verdict.certain else None,
        "node": beat.node if beat is not None and verdict.certain else None,
        "step": verdict.step,
        "collective": verdict.collective,
        "seconds": round(verdict.seconds, 1),
        "reason": f"{_named(verdict)}: {verdict.reason}" if verdict.certain else verdict.reason,
        "stacks": stacks,
    }
    if verdict.certain and len(verdict.ranks) > 1:
        event["other_ranks"] = list(verdict.ranks[1:])
    return event


def _failure(verdict: HangVerdict, rank: int, stacks: str) -> WorkerFailure:
    beat = verdict.heartbeats.get(rank)
    return WorkerFailure(
        rank=rank,
        node=beat.node if beat is not None else "unknown",
        pid=beat.pid if beat is not None else None,
        kind="hang",
        step=verdict.step,
        error=f"hang: stood still for {verdict.seconds:.0f} s; {verdict.reason}",
        traceback=_training_thread(stacks),
        time_unix_seconds=time.time(),
    )


def _training_thread(stacks: str) -> str:
    """The stack that matters among those of a process; all of them where it is not found."""
    return next((stack for stack in stacks.split("\n\n") if _TRAINING in stack), stacks)


def _named(verdict: HangVerdict) -> str:
    """The culprits and their nodes in words."""
    names = []
    for rank in verdict.ranks:
        beat = verdict.heartbeats.get(rank)
        names.append(f"rank {rank} on node {beat.node}" if beat is not None else f"rank {rank}")
    return ", ".join(names)


def _account(verdict: HangVerdict, stacks: Mapping[int, str]) -> str:
    """The file that a person reads."""
    lines = [
        f"No rank has moved for {verdict.seconds:.0f} s, at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC.",
        f"{_named(verdict)}: {verdict.reason}." if verdict.certain else f"{verdict.reason}.",
        "",
    ]
    heard_never = [rank for rank in verdict.ranks if rank not in verdict.heartbeats]
    lines += [f"== rank {rank}: no heartbeat ever came from it" for rank in heard_never]
    for rank, beat in sorted(verdict.heartbeats.items()):
        place = f"in {beat.collective}" if beat.collective is not None else "in no collective"
        lines += [
            f"== rank {rank}, node {beat.node}, process {beat.pid}, step {beat.step}, {place}"
            f"{', its attempt has ended' if beat.ended else ''}",
            stacks[rank].rstrip(),
        ]
        if beat.stack:
            lines += ["training thread at its last heartbeat, innermost first:", *(f"  {line}" for line in beat.stack)]
        lines.append("")
    return "\n".join(lines) + "\n"
