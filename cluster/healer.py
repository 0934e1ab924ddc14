"""Healing carried out in an attempt: verdicts for the loop, events, and the return to an earlier checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.checkpoint import list_checkpoints, reject
from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.continuation import Continuation
from cluster.healing import HEALING, Anomaly, Decisions, HealthWatch, Rollback, check_rollbacks, first_skipped_step
from cluster.record.logs import EVENTS_NAME, read_lines
from cluster.record.wandb_mirror import Failure
from cluster.record.wandb_view import LOSS_NOT_FINITE
from cluster.run_directory import RunDirectory
from cluster.storage.operations import storage_path
from cluster.storage.retry import retried
from cluster.topology import Topology
from cluster.train_loop import Verdict
from data_pipeline.plan import DataPlan

ROLLED_BACK = "rolled_back"


class Healer:
    """Judges the steps of one attempt. Used on all ranks alike; rank 0 tells and writes."""

    def __init__(
        self,
        config: RunConfig,
        origin: Continuation,
        *,
        plan: DataPlan,
        topology: Topology,
        collectives: Collectives,
        post: Callable[[dict[str, Any]], None],
    ) -> None:
        """Go on from where the attempt begins.

        Args:
            config: The run.
            origin: The state that the attempt begins with.
            plan: Maps steps to sequences.
            topology: Place of this rank.
            collectives: Small exchanges between ranks.
            post: Sends an event to the driver.
        """
        self._config = config
        self._origin = origin
        self._plan = plan
        self._topology = topology
        self._collectives = collectives
        self._post = post
        self._directory = storage_path(config.storage) / config.name
        self._watch = HealthWatch(
            config.healing, memory=origin.memory, withheld=origin.decisions.withheld, run=config.name
        )
        self._alarm: Anomaly | None = None
        self.decisions: Decisions = origin.decisions
        """What was decided so far."""

    def memory(self) -> dict[str, Any]:
        """For checkpoints: what was decided so far, and what later judgements depend on."""
        return {**self.decisions.to_json(), **self._watch.memory()}

    def tell_untold(self) -> None:
        """Post the events of rollbacks that the record lacks: a kill may come between a decision and its event."""
        if not self._topology.is_main or not self.decisions.rollbacks:
            return
        events = self._directory / EVENTS_NAME
        told = {
            (row.get("step"), row.get("to_step"))
            for row in retried(partial(read_lines, events), f"reading {events}")
            if row.get("event") == ROLLED_BACK
        }
        for each in self.decisions.rollbacks:
            if (each.step, each.to_step) not in told:
                self._tell_rollback(each, "told by the attempt after it")

    def judge_loss(self, step: int, loss: float) -> Verdict:
        """Whether a step's loss is sound, before its update.

        Raises:
            TrainingFailedError: Healing has come to its end.
        """
        return self._act_on(self._watch.judge_loss(step, loss))

    def judge_gradients(self, step: int, loss: float, norm: float) -> Verdict:
        """Whether the norm of a step's gradients is sound; raises as `judge_loss`."""
        return self._act_on(self._watch.judge_gradients(step, loss, norm))

    def roll_back(self) -> None:
        """Decide where to go back to and which sequences to leave out, and note it before anything is loaded.

        The next attempt takes the newest checkpoint that is left. Called on all ranks, with no checkpoint in flight.

        Raises:
            TrainingFailedError: The run was rolled back here too often already.
            data_pipeline.errors.OrderError: The data would end before the run does.
        """
        alarm, config = self._alarm, self._config
        assert alarm is not None
        check_rollbacks(self.decisions, alarm, config=config.healing, every_steps=config.checkpoint.every_steps)
        to_step, suspect = self._collectives.from_main(self._target(alarm) if self._topology.is_main else (0, 0))
        first = first_skipped_step(suspect, to_step, config.healing)
        start, stop = (self._plan.position_after(step, self.decisions.skips) for step in (first - 1, alarm.step))
        skips = self.decisions.skips.add(start, stop)
        self._plan.check_steps(config.train.max_steps, skips)
        rollback = Rollback(step=alarm.step, to_step=to_step, start=start, stop=stop)
        self.decisions = Decisions(
            skips=skips,
            withheld=tuple(step for step in self.decisions.withheld if step < first),
            rollbacks=(*self.decisions.rollbacks, rollback),
        )
        self._note()
        self._tell_rollback(rollback, str(alarm))

    def failure(self) -> Failure | None:
        """The alert for an alarm that the run is rolled back for; None but for a loss that is not finite.

        The step is made again with other sequences, so that no line of the record says it.
        """
        if self._alarm is None or self._alarm.kind != "non_finite_loss":
            return None
        return Failure(title=LOSS_NOT_FINITE, text=f"{self._alarm}; the run goes back to an earlier checkpoint")

    def _act_on(self, anomaly: Anomaly | None) -> Verdict:
        if anomaly is None:
            return "go_on"
        self._tell(
            "anomaly",
            step=anomaly.step,
            kind=anomaly.kind,
            action=anomaly.action,
            loss=anomaly.loss,
            score=anomaly.score,
        )
        if anomaly.leaves_update_out:
            if anomaly.step not in self.decisions.withheld:
                self.decisions = replace(self.decisions, withheld=(*self.decisions.withheld, anomaly.step))
                self._note()
            self._tell("update_skipped", step=anomaly.step, reason=str(anomaly))
            return "skip"
        if anomaly.action == "rollback":
            self._alarm = anomaly
            return "rollback"
        return "go_on"

    def _target(self, alarm: Anomaly) -> tuple[int, int]:
        """Where to go back to, 0 for the beginning, and the step of the last batch that may be the cause.

        A state that gives an alarm before it was updated once, with a batch that others were put in the place of
        already, may be the cause itself: it is rejected, and left out are the last batches that led to it, too,
        since with them it would only come to be again.
        """
        usable = [
            info.step for info in list_checkpoints(self._directory) if info.problem is None and info.step < alarm.step
        ]
        again = any(each.to_step == self._origin.step for each in self.decisions.rollbacks)
        if again and alarm.step == self._origin.step + 1 and self._origin.info is not None and len(usable) > 1:
            with contextlib.suppress(OSError):  # it is passed over all the same: it does not know what is decided now
                reject(self._origin.info, f"{alarm} with the first batch after it, a second time", kind="anomaly")
            return usable[-2], self._origin.step
        return (usable[-1] if usable else 0), alarm.step

    def _note(self) -> None:
        if self._topology.is_main:
            RunDirectory(self._directory).update({HEALING: self.decisions.to_json()})

    def _tell_rollback(self, rollback: Rollback, reason: str) -> None:
        self._tell(ROLLED_BACK, step=rollback.step, to_step=rollback.to_step, reason=reason)
        self._tell("samples_skipped", step=rollback.step, start=rollback.start, stop=rollback.stop)

    def _tell(self, event: str, **details: Any) -> None:
        if self._topology.is_main:
            self._post({"event": event, **details})
