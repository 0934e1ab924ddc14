"""The driver as judge of failures: its verdicts, what counts against the run, the micro-batch it came down to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.failure import WorkerFailure
from cluster.faults import Decision, Ruling, Tally, Terms, causes_by_rank, micro_batch_size, root_cause, rule
from cluster.inquest import Case, Seat
from cluster.run_directory import RunDirectory

MICRO_BATCH = "micro_batch_after_out_of_memory"
"""Key in run.json: the smallest micro-batch that `failed`, and the one `taken` since."""
_CONTROLLER_LOST = "Ray Train's controller died"


class Verdicts:
    """Judges one failure after another.

    Args:
        config: The run, as the user wants it.
        elastic: Whether it may go on with another number of workers.
        run_directory: Remembers the micro-batch.
        failures: Filled with the failures of the last group that failed, the root cause first.
    """

    def __init__(self, config: RunConfig, elastic: bool, run_directory: Path, failures: list[WorkerFailure]) -> None:
        self._asked = config
        self._elastic = elastic
        self._record = RunDirectory(run_directory)
        self._failures = failures
        self._tally = Tally()
        self._remembered: Mapping[str, int] | None = self._record.facts().get(MICRO_BATCH)
        self._unwritten = False
        self._news: list[dict[str, Any]] = []
        self.by_number: dict[str, Decision] = {}
        """Every verdict so far: Ray's controller asks for its own until it has it."""
        self.decided: Decision | None = None
        """About the group at work; None while nothing has happened to it."""
        self.given_up: str | None = None
        """Why the run ends."""
        self.lost_nodes: set[str] = set()
        """Ids of the nodes that the last group lost."""

    @property
    def config(self) -> RunConfig:
        """The run as its workers get it."""
        size = micro_batch_size(self._asked.train.micro_batch_size, self._remembered)
        return replace(self._asked, train=replace(self._asked.train, micro_batch_size=size))

    def say_what_is_remembered(self, say: Callable[[str], None]) -> None:
        """Tell the person where an earlier shortage of memory decides the micro-batch."""
        asked, size = self._asked.train.micro_batch_size, self.config.train.micro_batch_size
        if size != asked:
            say(f"train.micro_batch_size {asked} ran out of memory in this run before: {size} is taken")

    def begin(self) -> None:
        """Begin with another group of workers, those of the last one being gone."""
        if self._unwritten:
            self._record.update({MICRO_BATCH: self._remembered})
            self._unwritten = False
        self.decided = None
        self.lost_nodes = set()

    def checkpoint_saved(self) -> None:
        """Failures before a checkpoint count no more: the run gets on."""
        self._tally = Tally()

    def judge(self, case: Case, seats: Mapping[int, Seat]) -> dict[str, Any]:
        """Decide what follows a failure.

        Args:
            case: The failure.
            seats: Where the ranks ran.

        Returns:
            Details of the event `worker_lost`.
        """
        cause = root_cause(case.failures)
        self._failures[:] = [cause, *(each for each in case.failures if each is not cause)]
        self.lost_nodes = {
            seats[each.rank].node_id
            for each in case.failures
            if each.kind in ("lost_node", "preemption") and each.rank in seats
        }
        self.by_number[case.number] = self._decide(cause, case.fatal).decision
        return {
            "kind": cause.kind,
            "rank": cause.rank,
            "node": cause.node,
            "step": cause.step,
            "causes": causes_by_rank(case.failures),
        }

    def controller_lost(self) -> dict[str, Any]:
        """Decide what follows the death of Ray Train's controller; returns details of the event `worker_lost`."""
        cause = WorkerFailure(
            rank=-1,
            node="the driver's",
            pid=None,
            kind="lost_worker",
            step=None,
            error=_CONTROLLER_LOST,
            traceback="",
            time_unix_seconds=time.time(),
        )
        self._decide(cause, None)
        return {"kind": cause.kind, "causes": {"controller": cause.error}}

    def give_up(self, reason: str) -> None:
        """End the run."""
        self.given_up = self.given_up or reason

    def news(self) -> list[dict[str, Any]]:
        """Events that the decisions led to, each told once."""
        told, self._news = self._news, []
        return told

    def _decide(self, cause: WorkerFailure, fatal: str | None) -> Ruling:
        size = self.config.train.micro_batch_size
        terms = Terms(micro_batch_size=size, elastic=self._elastic)
        ruling, self._tally = rule(self._tally, self._asked.faults, terms, cause, fatal=fatal)
        self.decided = ruling.decision
        if ruling.decision == "end":
            self.give_up(ruling.reason)
        if ruling.micro_batch_size is not None:
            self._remembered = {"failed": size, "taken": ruling.micro_batch_size}
            self._unwritten = True
            self._news.append({"event": "micro_batch_halved", "step": cause.step, **self._remembered})
        return ruling
