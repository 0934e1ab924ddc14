"""A driver in this process that evaluates checkpoints as Ray tasks would, when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attempts import record_of
from tiny import SilentLink, begin, no_tracking

from cluster.attempt import AttemptResult, Surroundings, run_attempt
from cluster.config import RunConfig
from cluster.engines.builders import torch_engine
from cluster.evaluation.beside import EVALUATIONS_WANTED, DueCheckpoint, EvaluationQueue, Outcome
from cluster.evaluation.task import evaluate_checkpoint
from cluster.topology import Topology


class EvaluatingLink(SilentLink):
    """Evaluates what rank 0 wants, one at a time, whenever it is asked and `delivers` says so."""

    def __init__(self, config: RunConfig, *, delivers: Callable[[DueCheckpoint], bool] = lambda due: True) -> None:
        super().__init__()
        self.evaluated: list[int] = []
        self._config = config
        self._delivers = delivers
        self._queue = EvaluationQueue(in_flight=1, tries=1)

    def post(self, message: dict[str, Any]) -> None:
        super().post(message)
        if message["type"] == EVALUATIONS_WANTED:
            self._queue.want(message["attempt"], map(DueCheckpoint.named_in, message["wanted"]))

    def evaluations(self) -> tuple[Outcome, ...]:
        due = self._queue.next()
        if due is not None:
            if self._delivers(due):
                outcome = evaluate_checkpoint(self._config, due, Topology())
                self.evaluated.append(due.step)
                self._queue.ended(outcome or Outcome(due=due, problem="gone"))
            else:
                self._queue.gave_way(due)
        return self._queue.outcomes()


def attempt_beside(
    config: RunConfig, link: EvaluatingLink, observe: Callable[[Any], None] | None = None
) -> AttemptResult:
    """One attempt with plain torch in this process, its evaluations made by the link."""
    begin(config)
    surroundings = Surroundings(
        build_engine=torch_engine,
        zero_stage=None,
        link=link,
        tracking=no_tracking(),
        evaluations=link.evaluations,
        observe=observe or (lambda batch: None),
    )
    return run_attempt(config, Topology(), surroundings)


def sorted_record(config: RunConfig) -> list[dict[str, Any]]:
    """Deterministic fields of every line, in an order that does not depend on when evaluations came."""
    return sorted(record_of(config), key=lambda row: (row["kind"], row["step"], str(row.get("name"))))
