"""Evaluation beside the training, the part that only decides: what is due, what is settled, which task runs next.

A checkpoint that is due is told apart by its manifest (step, attempt, time of creation), so that what was measured of
one course of the run is never written into another. Pure, and without torch: the mailbox's actor unpickles it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.config import RunConfig

EVALUATIONS_WAITING = "evaluations_waiting"
"""Key in run.json: the checkpoints that were due and not recorded when the last checkpoint was published."""
EVALUATIONS_WANTED = "evaluations_wanted"
"""Type of rank 0's message to the driver: all checkpoints that wait."""
EVALUATION_FAILED = "evaluation_failed"
EVALUATION_LOST = "evaluation_lost"
EVALUATION_MISSING = "evaluation_missing"
_GONE = "its checkpoint is no longer there: evaluations came later than checkpoint.keep_last and evaluation.max_waiting"


@dataclass(frozen=True, kw_only=True, order=True)
class DueCheckpoint:
    """A published checkpoint that is to be evaluated; they order by step."""

    step: int
    attempt: int
    """Of its manifest."""
    created_unix_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def named_in(cls, facts: Mapping[str, Any]) -> DueCheckpoint:
        """The one that an event or another JSON object names."""
        return cls(
            step=facts["step"], attempt=facts["attempt"], created_unix_seconds=facts.get("created_unix_seconds", 0.0)
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that the model of a checkpoint wrote."""

    name: str
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the evaluation of a checkpoint."""

    due: DueCheckpoint
    rows: tuple[Mapping[str, Any], ...] = ()
    """Fields of `eval` lines: name, eval/loss, eval/perplexity."""
    samples: tuple[Sample, ...] = ()
    problem: str | None = None
    """Why there is nothing, and never will be; None where there is."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the record of a run holds of evaluations."""

    lines: Collection[tuple[str, str, int]] = ()
    """(kind, name, step) of every `eval` and `sample` line."""
    given_up: Collection[DueCheckpoint] = ()
    """Those that an event says are failed or lost."""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> Recorded:
        """From lines of metrics.jsonl and samples.jsonl, and of events.jsonl."""
        return cls(
            lines={(row["kind"], row["name"], row["step"]) for row in rows if row.get("kind") in ("eval", "sample")},
            given_up={
                DueCheckpoint.named_in(event)
                for event in events
                if event.get("event") in (EVALUATION_FAILED, EVALUATION_LOST)
            },
        )

    def settles(self, due: DueCheckpoint, names: Sequence[str]) -> bool:
        """Whether nothing more is to be done about a checkpoint.

        Args:
            due: The checkpoint.
            names: Datasets that are evaluated; where there is none, a text sample is all that can be expected.
        """
        if due in self.given_up:
            return True
        if names:
            return all(("eval", name, due.step) in self.lines for name in names)
        return any(kind == "sample" and step == due.step for kind, _, step in self.lines)


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    """What is left to do for the checkpoints of the past."""

    waiting: tuple[DueCheckpoint, ...]
    """To be evaluated, oldest first."""
    lost: tuple[DueCheckpoint, ...]
    """Were to be evaluated, and are gone."""


def is_due(config: RunConfig, step: int) -> bool:
    """Whether the checkpoint of a step is to be evaluated beside the training."""
    every = config.evaluation.every_steps
    beside = config.evaluation.beside_training and every is not None
    return beside and step > 0 and (step % (every or 1) == 0 or step == config.train.max_steps)


def outstanding(
    config: RunConfig,
    *,
    step: int,
    published: Iterable[DueCheckpoint],
    noted: Iterable[DueCheckpoint],
    recorded: Recorded,
    names: Sequence[str],
) -> Outstanding:
    """What an attempt that continues from a step has to make up.

    Checkpoints of later steps belong to a course that the run has left: they count for nothing.

    Args:
        config: The run.
        step: Where training continues.
        published: The usable checkpoints of the run's own.
        noted: What run.json says was waiting.
        recorded: What the record holds, later steps left out.
        names: Datasets that are evaluated.
    """
    there = {each.step: each for each in published}
    waiting = [
        each
        for each in there.values()
        if each.step <= step and is_due(config, each.step) and not recorded.settles(each, names)
    ]
    lost = [
        each for each in noted if each.step <= step and each.step not in there and not recorded.settles(each, names)
    ]
    return Outstanding(waiting=tuple(sorted(waiting)), lost=tuple(sorted(lost)))


def kept_for_evaluation(waiting: Iterable[DueCheckpoint], max_waiting: int) -> set[int]:
    """Steps that retention leaves alone: the oldest that wait, which are evaluated next.

    Later ones stay as long as retention keeps them anyway: where evaluations do not keep up, they thin out, and what is
    being read is never removed.
    """
    return {each.step for each in sorted(waiting)[:max_waiting]}


class EvaluationQueue:
    """What the driver knows of the evaluations that rank 0 wants: what runs, what is done, what failed how often.

    Args:
        in_flight: Tasks at a time.
        tries: Times that an evaluation is tried.
    """

    def __init__(self, *, in_flight: int, tries: int) -> None:
        self._in_flight = in_flight
        self._tries = tries
        self._heard_from = 0
        self._wanted: tuple[DueCheckpoint, ...] = ()
        self._running: set[DueCheckpoint] = set()
        self._failures: dict[DueCheckpoint, int] = {}
        self._outcomes: dict[DueCheckpoint, Outcome] = {}

    def want(self, attempt: int, wanted: Iterable[DueCheckpoint]) -> None:
        """Take the newest list of all that is wanted; what is not in it any more is forgotten.

        Args:
            attempt: Who wants it: an attempt that was superseded wants nothing.
            wanted: All that waits.
        """
        if attempt < self._heard_from:
            return
        self._heard_from = attempt
        self._wanted = tuple(sorted(wanted))
        self._failures = {due: count for due, count in self._failures.items() if due in self._wanted}
        self._outcomes = {due: outcome for due, outcome in self._outcomes.items() if due in self._wanted}

    def next(self) -> DueCheckpoint | None:
        """The evaluation to begin now, which then runs; None where none is to."""
        if len(self._running) >= self._in_flight:
            return None
        for due in self._wanted:
            if due not in self._running and due not in self._outcomes:
                self._running.add(due)
                return due
        return None

    def abandoned(self) -> set[DueCheckpoint]:
        """What runs and is wanted no more."""
        return self._running - set(self._wanted)

    def gave_way(self, due: DueCheckpoint) -> None:
        """A task was ended by the driver; that is no failure of its."""
        self._running.discard(due)

    def ended(self, outcome: Outcome) -> None:
        """A task came to its end."""
        self._running.discard(outcome.due)
        if outcome.due in self._wanted:
            self._outcomes[outcome.due] = outcome

    def failed(self, due: DueCheckpoint, reason: str) -> Outcome | None:
        """A task failed; gives what becomes of it where it is not tried again."""
        self._running.discard(due)
        if due not in self._wanted:
            return None
        self._failures[due] = self._failures.get(due, 0) + 1
        if self._failures[due] < self._tries:
            return None
        outcome = Outcome(due=due, problem=f"{reason} (tried {self._tries} times)")
        self._outcomes[due] = outcome
        return outcome

    def outcomes(self) -> tuple[Outcome, ...]:
        """What rank 0 may record: in the order of the steps, so none before those of earlier steps are known."""
        known = []
        for due in self._wanted:
            if due not in self._outcomes:
                break
            known.append(self._outcomes[due])
        return tuple(known)


def event_of(due: DueCheckpoint, event: str, reason: str) -> dict[str, Any]:
    """An event about a checkpoint's evaluation."""
    return {"event": event, **due.as_dict(), "reason": reason}


def lost_event(due: DueCheckpoint) -> dict[str, Any]:
    """The event for an evaluation whose checkpoint is gone."""
    return event_of(due, EVALUATION_LOST, _GONE)
