"""What a user may say about faults and healing. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.config_rules import STRICT, require_at_least_one


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """How often workers that failed are replaced, by cause. Each count begins anew with each new checkpoint."""

    __pydantic_config__ = STRICT

    max_preemptions: int = -1
    """Times that the platform takes nodes back with notice; -1: without limit."""
    max_lost_nodes: int = 10
    """Times that nodes vanish without notice; -1: without limit."""
    max_lost_workers: int = 3
    """Times that a worker's process is killed, or ended because it hung, while its node lives; -1: without limit."""
    max_out_of_memory: int = 1
    """Times that a worker that ran out of memory is tried again on the same terms; -1: without limit."""
    max_errors: int = 3
    """Times that a worker's program raises an error; -1: without limit. The same error at the same step a second time
    stops the run whatever the number."""
    on_oom: Literal["stop", "halve_micro_batch"] = "stop"
    """What out of memory leads to. `stop`: `max_out_of_memory` trials, then the run ends and names a micro-batch to
    try. `halve_micro_batch`: half of `train.micro_batch_size` each time, down to 1; the global batch stays. What was
    taken is taken again on the same devices, stage, workers and `train.micro_batch_size` only. Out of memory before the
    first step counts against `max_out_of_memory` alone."""
    hang_timeout_seconds: float | None = 600.0
    """Time in which no rank moves, after which the one that the others wait for is ended and its node avoided; null:
    never. Ten minutes is what NCCL gives a collective; a compilation, or a call that reads no files, may take less."""

    def __post_init__(self) -> None:
        for name in ("max_preemptions", "max_lost_nodes", "max_lost_workers", "max_out_of_memory", "max_errors"):
            if getattr(self, name) < -1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a count, or -1 for no limit.")
        if self.hang_timeout_seconds is not None and self.hang_timeout_seconds < 20:
            raise ValueError(
                f"hang_timeout_seconds is {self.hang_timeout_seconds:g}, and a rank counts as silent after 10 s "
                "without a heartbeat: 20 or more tells hanging from being slow. Null turns the watch off."
            )


@dataclass(frozen=True, kw_only=True)
class HealingConfig:
    """What is done when numbers go wrong. Every act is an event, and a resumed run repeats it exactly."""

    __pydantic_config__ = STRICT

    non_finite: Literal["warn", "skip", "rollback"] = "rollback"
    """On a loss or gradients that are not finite, whose update is never applied. `skip` goes on with the next batch;
    `rollback` goes back to the last good checkpoint and leaves the batch out of the order; `warn` only says so."""
    loss_spike: Literal["off", "warn", "skip", "rollback"] = "warn"
    """On a loss far above those before it. `skip` leaves out the update, `rollback` does as above."""
    spike_score: float = 8.0
    """Robust z-score that makes a loss a spike: its distance from the median over 1.4826 median absolute deviations."""
    spike_window_steps: int = 128
    """Steps before it that a loss is compared with; nothing is called a spike until half of them are there."""
    rollback_batches: int = 1
    """Batches that a rollback leaves out, the one that gave the alarm being the last of them."""
    max_rollbacks: int = 3
    """Rollbacks for alarms within one checkpoint interval of each other; one more ends the run."""
    skip_sequences: tuple[tuple[int, int], ...] = ()
    """Ranges [first, past the last] of logical sequence indices to leave out from the start, for example those that
    another run's `samples_skipped` events name."""

    def __post_init__(self) -> None:
        require_at_least_one("rollback_batches", self.rollback_batches)
        if self.spike_window_steps < 4:
            raise ValueError(f"spike_window_steps is {self.spike_window_steps}: a median of fewer than 4 says nothing.")
        if not self.spike_score > 0:
            raise ValueError(f"spike_score is {self.spike_score}, and must be above 0; 6 to 10 are usual.")
        if self.max_rollbacks < 0:
            raise ValueError(f"max_rollbacks is {self.max_rollbacks}: it is a count, 0 for none.")
        for start, stop in self.skip_sequences:
            if not 0 <= start < stop:
                raise ValueError(
                    f"skip_sequences hold [{start}, {stop}]: a range begins at 0 or later and holds an index. "
                    "Write [first, past the last]."
                )
