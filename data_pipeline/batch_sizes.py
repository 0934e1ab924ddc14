"""How many sequences each optimizer step takes: the stages of a warm-up, then the final size.

Early gradients point the same way in every batch, so that a small batch teaches as much as a large one, and the size
from which on that ends grows during training (McCandlish et al., arXiv:1812.06162; measured on language models by
Merrill et al., arXiv:2505.23971). Llama 3 therefore doubled its batch twice (arXiv:2407.21783, section 3.4.1). Stages
with stated ends are what such reports give, and every question about a step is answered in the number of stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.config_rules import STRICT


@dataclass(frozen=True, kw_only=True)
class BatchSizeStage:
    """A stretch of steps with a smaller batch."""

    __pydantic_config__ = STRICT

    until_step: int
    """Last optimizer step of the stage."""
    global_batch_size: int
    """Sequences in each of its steps, over all workers."""

    def __post_init__(self) -> None:
        for name in ("until_step", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1.")


@dataclass(frozen=True)
class BatchSizes:
    """Sequences of every optimizer step, counted from 1.

    Raises:
        ValueError: The stages do not follow one another, or the sizes do not grow.
    """

    final: int
    """Sequences of the steps after the last stage."""
    warmup: tuple[BatchSizeStage, ...] = ()
    """In the order of their steps."""

    def __post_init__(self) -> None:
        step, size = 0, 0
        for stage in self.warmup:
            if stage.until_step <= step:
                raise ValueError(
                    f"batch_size_warmup holds a stage until step {stage.until_step} after one until step {step}: it "
                    "would have no steps. Order the stages by until_step."
                )
            self._require_growth(size, stage.global_batch_size)
            step, size = stage.until_step, stage.global_batch_size
        if self.warmup:
            self._require_growth(size, self.final)

    def __str__(self) -> str:
        return ", then ".join(map(str, self._sizes))

    @property
    def smallest(self) -> int:
        """Sequences of the smallest step."""
        return self._sizes[0]

    def at(self, step: int) -> int:
        """Returns the sequences of optimizer step `step`."""
        return next((stage.global_batch_size for stage in self.warmup if step <= stage.until_step), self.final)

    def through(self, step: int) -> int:
        """Returns the sequences of all optimizer steps up to `step`; 0 is before the first."""
        before, sequences = 0, 0
        for stage in self.warmup:
            until = min(step, stage.until_step)
            sequences += (until - before) * stage.global_batch_size
            before = until
        return sequences + (step - before) * self.final

    def steps_within(self, sequences: int) -> int:
        """Returns how many optimizer steps so many sequences are enough for."""
        before = 0
        for stage in self.warmup:
            steps = stage.until_step - before
            if sequences < steps * stage.global_batch_size:
                return before + sequences // stage.global_batch_size
            sequences -= steps * stage.global_batch_size
            before = stage.until_step
        return before + sequences // self.final

    def stages_through(self, step: int) -> tuple[BatchSizeStage, ...]:
        """Returns stages that say of the steps up to `step` what this does; equal ones where the sizes are equal."""
        stages = [stage for stage in self.warmup if stage.until_step < step]
        return (*stages, BatchSizeStage(until_step=step, global_batch_size=self.at(step)))

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (*(stage.global_batch_size for stage in self.warmup), self.final)

    def _require_growth(self, size: int, following: int) -> None:
        if following <= size:
            raise ValueError(
                f"batch_size_warmup leads from {size} sequences to {following} (global_batch_size is {self.final}): a "
                "warm-up grows with every stage, and ends below global_batch_size. Change the sizes, or leave a stage "
                "out."
            )
