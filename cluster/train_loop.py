"""The training loop. A step reads top to bottom; everything it does to the world is a named callable in `Effects`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from cluster.batches import RankBatch
from cluster.collectives import Collectives
from cluster.engines.protocol import Engine

Ending = Literal["finished", "stopped", "regroup", "rollback"]
"""Why the loop ended: the batches ran out; a person or the platform wanted it; the workers are to be other ones; the
numbers went wrong and an earlier state is wanted."""
Regroup = Literal["no", "at_checkpoint", "now"]
"""Whether the driver wants to put the workers together anew, and how long that can wait."""
Verdict = Literal["go_on", "skip", "rollback"]


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


@dataclass(kw_only=True)
class Spent:
    """Seconds since the last report, by what they went into."""

    training: float = 0.0
    data_wait: float = 0.0
    checkpoint: float = 0.0
    """The step path standing still for saves."""
    evaluation: float = 0.0
    compilation: float = 0.0
    """torch compiling, whatever it was compiled for; none of the other parts holds it."""


class Stopwatch:
    """Puts the time since it was last asked into a part, and what torch compiled for meanwhile into its own."""

    def __init__(self, compilation_seconds: Callable[[], float]) -> None:
        """Begin.

        Args:
            compilation_seconds: Spent compiling in this process so far.
        """
        self._compilation_seconds = compilation_seconds
        self.restart()

    def restart(self) -> None:
        """Put the time until now nowhere."""
        self._since, self._compiled = time.perf_counter(), self._compilation_seconds()

    def lap(self, spent: Spent, part: Literal["training", "data_wait", "checkpoint", "evaluation"]) -> None:
        """Put the time until now into a part."""
        since, compiled = self._since, self._compiled
        self.restart()
        passed = self._since - since
        compilation = min(max(self._compiled - compiled, 0.0), passed)  # torch's clock is another, and may be set
        spent.compilation += compilation
        setattr(spent, part, getattr(spent, part) + passed - compilation)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step, as it is logged, and what went into the steps since the last report."""

    step: int
    loss: float
    gradient_norm: float | None
    """None where the update was left out."""
    learning_rate: float
    steps: int
    """Made since the last report."""
    spent: Spent
    terms: Mapping[str, list[float]]
    """Means over the targets of the step's other sums (`LossSums.terms`), flattened."""


@dataclass(frozen=True, kw_only=True)
class LoopEnd:
    """How the loop ended."""

    ending: Ending
    spent: Spent
    """What no report has: the seconds since the last one."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Everything a step does besides computing. All are called on every rank; most act on rank 0 only."""

    observe: Callable[[RankBatch], None]
    """Sees each batch before it is computed."""
    check_loss: Callable[[int, float], None]
    """Gets the first loss after a load, before the first update; raises when it is not the one that was saved."""
    next_loss: Callable[[float], None]
    """Hands the loss of the batch after a checkpoint to the checkpoint in flight."""
    judge_loss: Callable[[int, float], Verdict]
    """Whether a step's loss is sound, before its update; every rank comes to the same verdict."""
    judge_gradients: Callable[[int, float, float], Verdict]
    """Whether the norm of a step's gradients is, with its loss; one that is not finite was not applied."""
    log: Callable[[StepReport], None]
    evaluate: Callable[[int], None]
    record_evaluations: Callable[[], None]
    """Writes what evaluations beside the training have brought since the last step."""
    save: Callable[[int], None]
    stop_requested: Callable[[], bool]
    """Whether a person or the platform wants this rank to save and end."""
    regroup_requested: Callable[[], Regroup]
    """Whether the driver wants this rank to end for other workers to take over."""
    compilation_seconds: Callable[[], float]
    """Spent compiling in this process so far."""


def train(
    engine: Engine,
    batches: Iterable[RankBatch],
    *,
    rhythm: Rhythm,
    learning_rate: Callable[[int], float],
    collectives: Collectives,
    effects: Effects,
    device: str,
) -> LoopEnd:
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
        Why it ended, and what its last seconds went into. The last step is saved, unless the end is a rollback.
    """
    fresh = True
    saved_last = False
    spent, steps = Spent(), 0
    watch = Stopwatch(effects.compilation_seconds)
    for batch in batches:
        watch.lap(spent, "data_wait")
        effects.observe(batch)
        regroup = effects.regroup_requested()
        target_weight, stops, regroups, leaves = collectives.sum(
            [batch.weight_sum, effects.stop_requested(), regroup != "no", regroup == "now"]
        )
        target_weight = target_weight or 1.0  # sums below 1 are divided by too: a few rows of a common class weigh so
        scale = torch.tensor(1.0 / target_weight, dtype=torch.float32, device=device)

        engine.begin_step(len(batch.micro_batches))
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        term_sums: dict[str, torch.Tensor] = {}
        for micro_batch in batch.micro_batches:
            sums = engine.accumulate(micro_batch, scale)
            loss_sum += sums.loss_sum
            for name, term in sums.terms.items():
                term_sums[name] = term_sums.get(name, 0.0) + term.double()

        loss = collectives.sum([loss_sum.item()])[0] / target_weight
        if fresh:
            effects.check_loss(batch.step, loss)
        if saved_last:
            effects.next_loss(loss)

        rate = learning_rate(batch.step)
        gradient_norm = None
        verdict = effects.judge_loss(batch.step, loss)
        if verdict == "go_on":
            gradient_norm = engine.update(rate).item()
            verdict = effects.judge_gradients(batch.step, loss, gradient_norm)
        else:
            engine.discard()
        if verdict == "rollback":
            return LoopEnd(ending="rollback", spent=spent)
        fresh = saved_last = False

        watch.lap(spent, "training")
        steps += 1
        if rhythm.logs(batch.step):
            effects.log(
                StepReport(
                    step=batch.step,
                    loss=loss,
                    gradient_norm=gradient_norm,
                    learning_rate=rate,
                    steps=steps,
                    spent=spent,
                    terms=_means(term_sums, target_weight, collectives),
                )
            )
            spent, steps = Spent(), 0
        if rhythm.evaluates(batch.step):
            effects.evaluate(batch.step)
            watch.lap(spent, "evaluation")
        effects.record_evaluations()
        watch.restart()
        if rhythm.saves(batch.step) or stops or leaves:
            effects.save(batch.step)
            saved_last = True
            watch.lap(spent, "checkpoint")
        if stops and batch.step < rhythm.last_step:
            return LoopEnd(ending="stopped", spent=spent)
        if regroups and saved_last and batch.step < rhythm.last_step:
            return LoopEnd(ending="regroup", spent=spent)
        watch.restart()
    return LoopEnd(ending="finished", spent=spent)


def _means(sums: Mapping[str, torch.Tensor], target_weight: float, collectives: Collectives) -> dict[str, list[float]]:
    """Sums of all ranks over the weight of the targets; no communication where there are none."""
    if not sums:
        return {}
    sizes = [term.numel() for term in sums.values()]
    flat = torch.cat([term.reshape(-1) for term in sums.values()])
    whole = torch.tensor(collectives.sum(flat.tolist()), dtype=torch.float64) / target_weight
    return {name: part.tolist() for name, part in zip(sums, torch.split(whole, sizes), strict=True)}
