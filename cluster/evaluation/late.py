"""Rank 0's side of evaluations beside the training: says which checkpoints wait, and records what comes of them.

The whole list of what waits is told again and again, so that nothing is lost with a message or a process; results come
back the same way, until they are no longer on the list. Nothing here waits for anything, but the end of the training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.branch import BRANCHED_FROM
from cluster.checkpoint import find_checkpoint, list_checkpoints
from cluster.config import RunConfig
from cluster.errors import CheckpointError, RunNotFoundError
from cluster.evaluation.beside import (
    EVALUATION_MISSING,
    EVALUATIONS_WAITING,
    EVALUATIONS_WANTED,
    DueCheckpoint,
    Outcome,
    Outstanding,
    Recorded,
    Sample,
    is_due,
    kept_for_evaluation,
    lost_event,
    outstanding,
)
from cluster.evaluation.in_loop import evaluated_names
from cluster.evaluation.task import identity_of
from cluster.record.logs import EVENTS_NAME, METRICS_NAME, SAMPLES_NAME, read_lines
from cluster.run_directory import RunDirectory
from cluster.storage.operations import StoragePath, storage_path
from cluster.storage.retry import retried
from data_pipeline.dataset import Dataset

logger = logging.getLogger(__name__)

_TELL_AGAIN_SECONDS = 5.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class LateEffects:
    """What late evaluations do to the world."""

    post: Callable[[dict[str, Any]], None]
    """Sends the driver a message; must not wait."""
    post_event: Callable[[dict[str, Any]], None]
    """Sends the driver an event for the record."""
    outcomes: Callable[[], Sequence[Outcome]]
    """What the driver has of the evaluations, in the order of their steps."""
    write_row: Callable[[int, Mapping[str, Any]], None]
    """Writes an `eval` line of a step."""
    write_sample: Callable[[int, Sample], None]
    """Writes a text sample of a step."""


def read_outstanding(config: RunConfig, datasets: Sequence[Dataset], *, step: int) -> tuple[Outstanding, Recorded]:
    """What the record and the checkpoints of a run say is left to evaluate, where training continues from a step.

    Raises:
        CheckpointUnreadableError: The checkpoints cannot be listed.
        StorageError: The record is damaged.
        OSError: It cannot be read, however often it is tried.
    """
    directory = storage_path(config.storage) / config.name
    rows = [row for name in (METRICS_NAME, SAMPLES_NAME) for row in _lines_of(directory / name)]
    recorded = Recorded.of((row for row in rows if row["step"] <= step), _lines_of(directory / EVENTS_NAME))
    noted = RunDirectory(directory).facts().get(EVALUATIONS_WAITING, ())
    published = [
        identity_of(info)
        for info in list_checkpoints(directory)
        if info.problem is None and info.manifest is not None and BRANCHED_FROM not in info.manifest.run
    ]
    found = outstanding(
        config,
        step=step,
        published=published,
        noted=map(DueCheckpoint.named_in, noted),
        recorded=recorded,
        names=evaluated_names(datasets, config),
    )
    return found, recorded


def _lines_of(path: StoragePath) -> list[dict[str, Any]]:
    return retried(partial(read_lines, path), f"reading {path}")


class LateEvaluations:
    """What waits for its evaluation in one attempt. Rank 0 only; the checkpoint thread and the training thread call.

    Args:
        config: The run.
        datasets: Its datasets, in order.
        attempt: Number of the attempt.
        step: Where it continues from.
        effects: What is done.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        datasets: Sequence[Dataset],
        *,
        attempt: int,
        step: int,
        effects: LateEffects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._directory = storage_path(config.storage) / config.name
        self._attempt = attempt
        self._effects = effects
        self._clock = clock
        self._lock = threading.Lock()
        found, recorded = read_outstanding(config, datasets, step=step)
        self._lines = set(recorded.lines)
        self._waiting = set(found.waiting)
        for due in found.lost:
            effects.post_event(lost_event(due))
        self._tell()

    def saved(self, step: int) -> dict[str, Any]:
        """Take the checkpoint of a step, which was just published; in the checkpoint's thread.

        Returns:
            For run.json: all that waits.
        """
        if is_due(self._config, step):
            try:
                due = identity_of(find_checkpoint(self._directory, step))
            except (
                CheckpointError,
                RunNotFoundError,
            ) as error:  # it cannot be read in this moment; the next attempt finds it
                logger.warning("the evaluation of step %d has to wait for another attempt: %s", step, error)
            else:
                with self._lock:
                    self._waiting.add(due)
                self._tell()
        return {EVALUATIONS_WAITING: [each.as_dict() for each in self.waiting]}

    @property
    def waiting(self) -> list[DueCheckpoint]:
        """What is due and not recorded, oldest first."""
        with self._lock:
            return sorted(self._waiting)

    def kept_steps(self) -> set[int]:
        """Steps whose checkpoints retention leaves alone."""
        return kept_for_evaluation(self.waiting, self._config.evaluation.max_waiting)

    def take(self) -> bool:
        """Record what has come; returns at once. Whether anything had come."""
        came = False
        for outcome in self._effects.outcomes():
            with self._lock:
                wanted = outcome.due in self._waiting
            if wanted:
                self._record(outcome)
                with self._lock:
                    self._waiting.discard(outcome.due)
                came = True
        if came or (self.waiting and self._clock() >= self._tell_again):
            self._tell()
        return came

    def wait(self, gives_up: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Wait for what is missing at the end of the training, as long as something comes in time.

        What is missing after that is told by an event; the same command makes it up from the checkpoints.

        Args:
            gives_up: Whether there is something more urgent.
            say: Tells the person what is waited for.
        """
        longest = self._config.evaluation.task_timeout_seconds
        deadline = self._clock() + longest
        told: list[int] = []
        while missing := [each.step for each in self.waiting]:
            if missing != told:
                say(f"waiting for the evaluation of {_steps(missing)} beside the training")
                told = missing
            stops = gives_up()
            if self.take():
                deadline = self._clock() + longest
            elif stops or self._clock() > deadline:
                self._tell_missing(missing, "the run was to end" if stops else f"none came within {longest:g} s")
                return
            else:
                rest()

    def _tell_missing(self, steps: list[int], why: str) -> None:
        reason = f"{why}; the same command makes them up from the checkpoints"
        self._effects.post_event({"event": EVALUATION_MISSING, "steps": steps, "reason": reason})

    def _record(self, outcome: Outcome) -> None:
        """Write the lines of an evaluation: those of the datasets last, since they say that it is whole."""
        step = outcome.due.step
        for sample in outcome.samples:
            if self._is_new("sample", sample.name, step):
                self._effects.write_sample(step, sample)
        for row in outcome.rows:
            if self._is_new("eval", row["name"], step):
                self._effects.write_row(step, row)

    def _is_new(self, kind: str, name: str, step: int) -> bool:
        """Whether there is no such line yet; a kill may come between two lines of an evaluation."""
        identity = (kind, name, step)
        new = identity not in self._lines
        self._lines.add(identity)
        return new

    def _tell(self) -> None:
        self._tell_again = self._clock() + _TELL_AGAIN_SECONDS
        wanted = [each.as_dict() for each in self.waiting]
        self._effects.post({"type": EVALUATIONS_WANTED, "attempt": self._attempt, "wanted": wanted})


def rest() -> None:
    """Wait a moment for evaluations; a thread that is found here does not hang."""
    time.sleep(_POLL_SECONDS)


def evaluations_are_missing(config: RunConfig, datasets: Sequence[Dataset]) -> bool:
    """Whether a run that made all its steps has a checkpoint that is still to be evaluated."""
    if not config.evaluation.beside_training:
        return False
    try:
        found, _ = read_outstanding(config, datasets, step=config.train.max_steps)
    except CheckpointError as error:
        logger.warning("whether evaluations are missing cannot be told: %s", error)
        return False
    return bool(found.waiting)


def _steps(steps: Iterable[int]) -> str:
    listed = [str(step) for step in steps]
    return f"step {listed[0]}" if len(listed) == 1 else f"steps {', '.join(listed)}"
