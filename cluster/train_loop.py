"""The training loop. A step reads top to bottom; everything it does to the world is a named callable in `Effects`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from cluster.batches import RankBatch
from cluster.collectives import Collectives
from cluster.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """What happens at which step; pure."""

    last_step: int
    log_every_steps: int
    evaluate_every_steps: int | None
    checkpoint_every_steps: int

    def logs(self, step: int) -> bool:
        """Whether a metrics line is written after this step."""
        return step == 1 or step % self.log_every_steps == 0 or step == self.last_step

    def evaluates(self, step: int) -> bool:
        """Whether the held-out loss is measured after this step."""
        every = self.evaluate_every_steps
        return every is not None and (step % every == 0 or step == self.last_step)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is taken after this step."""
        return step % self.checkpoint_every_steps == 0 or step == self.last_step


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step, as it is logged. Speed covers the steps since the last report, without evaluation and saving."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    steps_per_second: float


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Everything a step does besides computing. All are called on every rank; most act on rank 0 only."""

    observe: Callable[[RankBatch], None]
    """Sees each batch before it is computed."""
    check_loss: Callable[[int, float], None]
    """Gets the first loss after a load, before the first update; raises when it is not the one that was saved."""
    next_loss: Callable[[float], None]
    """Hands the loss of the batch after a checkpoint to the checkpoint in flight."""
    log: Callable[[StepReport], None]
    evaluate: Callable[[int], None]
    save: Callable[[int], None]
    stop_requested: Callable[[], bool]
    """Whether a person or the platform wants this rank to save and end."""


def train(
    engine: Engine,
    batches: Iterable[RankBatch],
    *,
    rhythm: Rhythm,
    learning_rate: Callable[[int], float],
    collectives: Collectives,
    effects: Effects,
    device: str,
) -> bool:
    """Make one optimizer step for each batch.

    Args:
        engine: Holds the state, already loaded.
        batches: This rank's part of each global batch, in step order.
        rhythm: When to log, evaluate and save.
        learning_rate: Rate of a step.
        collectives: Small exchanges between ranks.
        effects: What else a step does.
        device: Where the loss is added up.

    Returns:
        Whether the batches ran out; False when a stop was requested, after saving.
    """
    fresh = True
    saved_last = False
    seconds, steps = 0.0, 0
    for batch in batches:
        started = time.perf_counter()
        effects.observe(batch)
        target_weight, stops = collectives.sum([batch.weight_sum, float(effects.stop_requested())])
        scale = torch.tensor(1.0 / max(target_weight, 1.0), dtype=torch.float32, device=device)

        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for micro_batch in batch.micro_batches:
            loss_sum += engine.accumulate(micro_batch, scale).loss_sum

        loss = float("nan")
        if fresh or saved_last or rhythm.logs(batch.step):
            loss = collectives.sum([loss_sum.item()])[0] / max(target_weight, 1.0)
        if fresh:
            effects.check_loss(batch.step, loss)
        if saved_last:
            effects.next_loss(loss)

        rate = learning_rate(batch.step)
        gradient_norm = engine.update(rate)
        fresh = saved_last = False

        reported_norm = gradient_norm.item() if rhythm.logs(batch.step) else 0.0  # waits for the device
        seconds, steps = seconds + time.perf_counter() - started, steps + 1
        if rhythm.logs(batch.step):
            effects.log(
                StepReport(
                    step=batch.step,
                    loss=loss,
                    gradient_norm=reported_norm,
                    learning_rate=rate,
                    steps_per_second=steps / seconds,
                )
            )
            seconds, steps = 0.0, 0
        if rhythm.evaluates(batch.step):
            effects.evaluate(batch.step)
        if rhythm.saves(batch.step) or stops:
            effects.save(batch.step)
            saved_last = True
        if stops:
            return batch.step == rhythm.last_step
    return True
