"""The driver as judge of failures: its verdicts, what counts against the run, the micro-batch it came down to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.config import RunConfig
from cluster.errors import StorageError
from cluster.faults.failure import WorkerFailure
from cluster.faults.inquest import Case, Seat
from cluster.faults.rules import FailureTally, Ruling, Sentence, Terms, causes_by_rank, root_cause, rule
from cluster.run_directory import RunDirectory
from cluster.storage.operations import StoragePath

logger = logging.getLogger(__name__)

MICRO_BATCHES = "micro_batches_after_out_of_memory"
"""Key in run.json: the shortages of memory that halved the micro-batch, one for each `Footing`."""
_CONTROLLER_LOST = "Ray Train's controller died"


@dataclass(frozen=True, kw_only=True)
class Footing:
    """What decides how much memory a micro-batch needs and finds: a shortage says nothing about any other."""

    device: str
    """Kind of the devices, or `cpu`."""
    zero_stage: int
    world_size: int
    configured: int
    """`train.micro_batch_size`."""


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """A micro-batch that ran out of memory."""

    footing: Footing
    failed: int
    """Sequences of the smallest that ran out."""
    taken: int
    """Sequences of the one that was taken then."""


class Verdicts:
    """Judges one failure after another.

    Args:
        config: The run, as the user wants it.
        run_directory: Remembers the micro-batch.
        failures: Filled with the failures of the last group that failed, the root cause first.
        device: Kind of the devices that the cluster has for the run, or `cpu`.
    """

    def __init__(
        self, config: RunConfig, run_directory: StoragePath, failures: list[WorkerFailure], *, device: str
    ) -> None:
        self._asked = config
        self._device = device
        self._workers = config.resources.max_workers
        self._record = RunDirectory(run_directory)
        self._failures = failures
        self._tally = FailureTally()
        self._shortages = [_shortage(each) for each in self._record.facts().get(MICRO_BATCHES, ())]
        self._unwritten = False
        self._told: Shortage | None = None
        self._news: list[dict[str, Any]] = []
        self.by_number: dict[str, Sentence] = {}
        """Every verdict so far: Ray's controller asks for its own until it has it."""
        self.decided: Sentence | None = None
        """About the group at work; None while nothing has happened to it."""
        self.given_up: str | None = None
        """Why the run ends."""
        self.lost_nodes: set[str] = set()
        """Ids of the nodes that the last group lost."""

    @property
    def config(self) -> RunConfig:
        """The run as the workers of this group get it."""
        known = self._known_shortage()
        size = self._asked.train.micro_batch_size if known is None else known.taken
        return replace(self._asked, train=replace(self._asked.train, micro_batch_size=size))

    def begin(self, workers: int, say: Callable[[str], None]) -> None:
        """Begin with another group of workers, those of the last one being gone.

        Args:
            workers: How many they are.
            say: Told where an earlier shortage of memory decides the micro-batch; an event says so too.
        """
        self._workers = workers
        self._remember()
        known = self._known_shortage()
        if known is not None and known != self._told:
            self._told = known
            asked = known.footing.configured
            say(f"train.micro_batch_size {asked} ran out of memory on such workers before: {known.taken} is taken")
            self._news.append(
                {"event": "micro_batch_halved", "failed": known.failed, "taken": known.taken, "remembered": True}
            )
        self.decided = None
        self.lost_nodes = set()

    def checkpoint_saved(self) -> None:
        """Failures before a checkpoint count no more: the run gets on."""
        self._tally = FailureTally()

    def judge(self, case: Case, seats: Mapping[int, Seat], *, nodes_changed: bool = False) -> dict[str, Any]:
        """Decide what follows a failure.

        Args:
            case: The failure.
            seats: Where the ranks ran.
            nodes_changed: Whether nodes came or went since the workers were started.

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
        self.by_number[case.number] = self._decide(cause, case.fatal, nodes_changed).decision
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
        self._decide(cause, None, nodes_changed=False)
        return {"kind": cause.kind, "causes": {"controller": cause.error}}

    def give_up(self, reason: str) -> None:
        """End the run."""
        self.given_up = self.given_up or reason

    def news(self) -> list[dict[str, Any]]:
        """Events that the decisions led to, each told once."""
        told, self._news = self._news, []
        return told

    def _footing(self) -> Footing:
        return Footing(
            device=self._device,
            zero_stage=self._asked.zero.stage,
            world_size=self._workers,
            configured=self._asked.train.micro_batch_size,
        )

    def _known_shortage(self) -> Shortage | None:
        """The one that this group of workers would meet again."""
        if self._asked.faults.on_oom != "halve_micro_batch":
            return None
        footing = self._footing()
        return next((each for each in self._shortages if each.footing == footing), None)

    def _remember(self) -> None:
        """Keep the shortages in run.json; where the storage does not take them, the next group tries again."""
        if not self._unwritten:
            return
        try:
            self._record.update({MICRO_BATCHES: [asdict(each) for each in self._shortages]})
            self._unwritten = False
        except (OSError, StorageError) as error:
            logger.warning("the smaller micro-batch could not be kept in %s: %s", self._record.path, error)

    def _decide(self, cause: WorkerFailure, fatal: str | None, nodes_changed: bool) -> Ruling:
        size, resources = self.config.train.micro_batch_size, self._asked.resources
        elastic = resources.min_workers < resources.max_workers
        terms = Terms(micro_batch_size=size, elastic=elastic, nodes_changed=nodes_changed)
        ruling, self._tally = rule(self._tally, self._asked.faults, terms, cause, fatal=fatal)
        self.decided = ruling.decision
        if ruling.decision == "end":
            self.give_up(ruling.reason)
        if ruling.micro_batch_size is not None:
            shortage = Shortage(footing=self._footing(), failed=size, taken=ruling.micro_batch_size)
            others = [each for each in self._shortages if each.footing != shortage.footing]
            self._shortages = [*others, shortage]
            self._unwritten, self._told = True, shortage
            self._news.append(
                {"event": "micro_batch_halved", "step": cause.step, "failed": size, "taken": shortage.taken}
            )
        return ruling


def _shortage(facts: Mapping[str, Any]) -> Shortage:
    return Shortage(footing=Footing(**facts["footing"]), failed=facts["failed"], taken=facts["taken"])
