"""A batch that gives wrong numbers, for runs that healing takes back."""

from __future__ import annotations

from typing import Any

import torch

from cluster.attempt import EngineRequest
from cluster.engines.builders import torch_engine
from cluster.engines.protocol import Engine, MicroBatch
from llm.loss import LossSums

BAD_SEQUENCE = 62


class Poison:
    """Makes every batch that holds a sequence give wrong numbers, whatever the step.

    Args:
        factor: What they are multiplied by.
        sequences: The sequences.
        what: `loss` and its gradients, `gradients` alone, or the loss's `value` alone.
    """

    def __init__(self, factor: float, sequences: tuple[int, ...] = (BAD_SEQUENCE,), *, what: str = "loss") -> None:
        self._factor = factor
        self._spoils_loss = what in ("loss", "value")
        self._spoils_gradients = what in ("loss", "gradients")
        self._sequences = set(sequences)
        self._bad = False

    def observe(self, batch: Any) -> None:
        self._bad = not self._sequences.isdisjoint(batch.sample_index.tolist())

    def build(self, request: EngineRequest) -> Engine:
        return self.applied_to(torch_engine(request))

    def applied_to(self, engine: Engine) -> Engine:
        accumulate = engine.accumulate

        def poisoned(batch: MicroBatch, scale: torch.Tensor) -> LossSums:
            factor = self._factor if self._bad else 1.0
            sums = accumulate(batch, scale * factor if self._spoils_gradients else scale)
            return sums._replace(loss_sum=sums.loss_sum * factor) if self._spoils_loss else sums

        engine.accumulate = poisoned  # type: ignore[method-assign]
        return engine
