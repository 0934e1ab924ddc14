"""Numbers that go wrong: how they are recognised, and what is decided. Pure; the attempt carries it out.

Every judgement follows from losses that all ranks share, so that all ranks come to the same one. Decisions are kept in
run.json until checkpoints hold them, so that a run that is killed after one makes the same one again.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.errors import TrainingFailedError
from cluster.faults.config import HealingConfig
from data_pipeline.skip_ledger import SkipLedger

HEALING = "healing"
"""Key of the decisions in run.json."""
WITHHELD_IN_A_ROW = 10
"""Updates left out one after the other before a run is given up: then it is not the batches that are bad."""
_NORMAL_SCALE = 1.4826
"""Median absolute deviations in a standard deviation of normally distributed values."""
_SMALLEST_SPREAD = 0.005
"""Of the median: losses of a flat curve lie closer together than what anyone would call a spike."""

Kind = Literal["non_finite_loss", "non_finite_gradients", "loss_spike", "decided_before"]
Action = Literal["warn", "skip", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A step whose numbers went wrong, and what is done about it."""

    step: int
    kind: Kind
    action: Action
    loss: float
    score: float | None = None
    """Robust z-score of the loss; None where it is not a spike."""

    @property
    def leaves_update_out(self) -> bool:
        """Whether the step goes on without its update: also where numbers that are not finite are only told."""
        return self.action == "skip" or (self.action == "warn" and self.kind != "loss_spike")

    def __str__(self) -> str:
        if self.kind == "loss_spike":
            return f"the loss of step {self.step} is {self.loss:.6g}, {self.score:.1f} deviations above the median"
        return {
            "non_finite_loss": f"the loss of step {self.step} is {self.loss}",
            "non_finite_gradients": f"the gradients of step {self.step} are not finite (its loss is {self.loss:.6g})",
            "decided_before": f"the update of step {self.step} was left out when the step was first made",
        }[self.kind]


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A return to an earlier state."""

    step: int
    """Step that gave the alarm."""
    to_step: int
    """Step of the checkpoint gone back to; 0 for the beginning."""
    start: int
    """First logical index that was left out."""
    stop: int
    """The index past the last one."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What healing has decided in a run so far."""

    skips: SkipLedger = field(default_factory=SkipLedger)
    """Sequences left out of the order."""
    withheld: tuple[int, ...] = ()
    """Steps whose update was left out."""
    rollbacks: tuple[Rollback, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {
            "skips": self.skips.to_json(),
            "withheld": list(self.withheld),
            "rollbacks": [asdict(each) for each in self.rollbacks],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decisions:
        """Reads what `to_json` gave."""
        return cls(
            skips=SkipLedger.from_json(value["skips"]),
            withheld=tuple(value["withheld"]),
            rollbacks=tuple(Rollback(**each) for each in value["rollbacks"]),
        )

    @classmethod
    def of(cls, facts: Mapping[str, Any], config: HealingConfig) -> Decisions:
        """Those that a run's facts hold, or those that its configuration begins with."""
        if HEALING in facts:
            return cls.from_json(facts[HEALING])
        ledger = SkipLedger()
        for start, stop in config.skip_sequences:
            ledger = ledger.add(start, stop)
        return cls(skips=ledger)


class HealthWatch:
    """Judges losses and gradient norms as they come.

    A spike is a loss whose robust z-score (Iglewicz and Hoaglin, 1993), (loss - median) / (1.4826 * MAD) over the last
    `spike_window_steps` finite losses, is above `spike_score`; MAD is the median absolute deviation. Losses that gave
    an alarm stay in the window: a level that lasts becomes the new normal.
    """

    def __init__(
        self,
        config: HealingConfig,
        *,
        memory: Mapping[str, Any] | None = None,
        withheld: Iterable[int] = (),
        run: str = "",
    ) -> None:
        """Go on where a checkpoint was taken.

        Args:
            config: What to look for and what to do.
            memory: As `memory` gave it; empty at the beginning of a run.
            withheld: Steps whose update is left out whatever their loss, as was decided before.
            run: Name of the run, for messages.
        """
        self._config = config
        memory = memory or {}
        self._losses: deque[float] = deque(memory.get("losses", ()), maxlen=config.spike_window_steps)
        self._in_a_row: int = memory.get("withheld_in_a_row", 0)
        self._withheld = set(withheld)
        self._run = run

    def memory(self) -> dict[str, Any]:
        """What later judgements depend on, as plain values: the window, and the updates left out in a row."""
        return {"losses": list(self._losses), "withheld_in_a_row": self._in_a_row}

    def judge_loss(self, step: int, loss: float) -> Anomaly | None:
        """Look at a step's loss before its update.

        Returns:
            None where it is sound.

        Raises:
            TrainingFailedError: Update after update would be left out.
        """
        anomaly = self._anomaly_of(step, loss)
        if math.isfinite(loss):
            self._losses.append(loss)
        if anomaly is not None and anomaly.leaves_update_out:
            self._withhold(anomaly)
        return anomaly

    def judge_gradients(self, step: int, loss: float, norm: float) -> Anomaly | None:
        """Look at the norm of a step's gradients; returns and raises as `judge_loss`."""
        if math.isfinite(norm):
            self._in_a_row = 0
            return None
        anomaly = Anomaly(step=step, kind="non_finite_gradients", action=self._config.non_finite, loss=loss)
        self._withhold(anomaly)  # the engine made no update, whatever the action
        return anomaly if math.isfinite(loss) else None  # the loss was told already

    def _anomaly_of(self, step: int, loss: float) -> Anomaly | None:
        if step in self._withheld:
            return Anomaly(step=step, kind="decided_before", action="skip", loss=loss)
        if not math.isfinite(loss):
            return Anomaly(step=step, kind="non_finite_loss", action=self._config.non_finite, loss=loss)
        score = self._score(loss)
        if self._config.loss_spike == "off" or score is None or score <= self._config.spike_score:
            return None
        return Anomaly(step=step, kind="loss_spike", action=self._config.loss_spike, loss=loss, score=score)

    def _score(self, loss: float) -> float | None:
        """Robust z-score; None until half of the window is there."""
        if len(self._losses) < max(2, self._config.spike_window_steps // 2):
            return None
        median = statistics.median(self._losses)
        spread = _NORMAL_SCALE * statistics.median(abs(value - median) for value in self._losses)
        return (loss - median) / max(spread, _SMALLEST_SPREAD * abs(median), 1e-12)

    def _withhold(self, anomaly: Anomaly) -> None:
        self._in_a_row += 1
        if self._in_a_row >= WITHHELD_IN_A_ROW:
            raise TrainingFailedError(
                f"run {self._run}: {anomaly}, and the updates of the {self._in_a_row} steps up to it were left out one "
                "after the other: not the batches are at fault, but the state or its settings. Earlier checkpoints are "
                "whole. Branch from one of them with a lower optimizer.learning_rate or a smaller "
                "optimizer.gradient_clip_norm, or set healing.non_finite and healing.loss_spike to rollback."
            )


def check_rollbacks(decisions: Decisions, anomaly: Anomaly, *, config: HealingConfig, every_steps: int) -> None:
    """Refuse to go back again and again at one place.

    Args:
        decisions: Earlier rollbacks.
        anomaly: The new alarm.
        config: How many rollbacks are allowed there.
        every_steps: Steps between checkpoints.

    Raises:
        TrainingFailedError: There were enough of them.
    """
    near = [each.step for each in decisions.rollbacks if abs(each.step - anomaly.step) <= every_steps]
    if len(near) >= config.max_rollbacks:
        raise TrainingFailedError(
            f"{anomaly}, and the run was rolled back {len(near)} times near there already (alarms at steps "
            f"{', '.join(map(str, near))}; healing.max_rollbacks is {config.max_rollbacks}): to leave out sequences "
            "does not mend it. Checkpoints up to the last saved one are whole: branch from an earlier one with a lower "
            "optimizer.learning_rate, or raise healing.rollback_batches or healing.max_rollbacks."
        )


def first_skipped_step(last_suspect: int, to_step: int, config: HealingConfig) -> int:
    """First of the batches that a rollback leaves out; none that the state gone back to has seen.

    Args:
        last_suspect: Step of the last batch that may be the cause.
        to_step: Step of the checkpoint gone back to.
        config: How many batches are left out.
    """
    return max(last_suspect - config.rollback_batches + 1, to_step + 1)


def of_another_history(decisions: Decisions, at_save: Decisions, *, step: int, position: int) -> bool:
    """Whether a checkpoint was taken before something was decided that it should have known.

    Args:
        decisions: All that healing decided in the run.
        at_save: What the checkpoint knows of.
        step: Its step.
        position: Its data position.
    """

    def seen(known: Decisions) -> tuple[list[tuple[int, int]], set[int]]:
        ranges = [(start, min(stop, position)) for start, stop in known.skips.intervals if start < position]
        return ranges, {withheld for withheld in known.withheld if withheld <= step}

    return seen(decisions) != seen(at_save)
