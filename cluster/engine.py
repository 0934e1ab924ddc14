"""The engine protocol: what the training loop asks of whatever holds the model's state.

Two real implementations: `torch_engine` (one process: reference, baseline, and what runs where Ray is absent) and
`deepspeed_engine` (ZeRO 0-3). A *fragment* is the contiguous part of one parameter whose fp32 master and optimizer
state live in one rank; the fragments of all ranks cover every parameter exactly once. Checkpoints are written and read
in fragments, and initial values are assigned through the same door, so that no topology has a path of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from llm.kv_cache import KeyValueCache
from llm.loss import LossSums

MASTER = "master"


@dataclass(frozen=True)
class MicroBatch:
    """One worker's rows of one forward pass, on the device.

    Shape: tokens, targets, loss_weights and document_ids are [B, T]; int64, int64, float32, int32.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor
    document_ids: torch.Tensor | None


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + length) of the flattened parameter `name`, of shape `shape`, in group `group`."""

    name: str
    group: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass
class FragmentState:
    """A fragment's numbers: fp32 tensors of `length` elements by state name, and scalar states such as `step`."""

    fragment: Fragment
    tensors: dict[str, torch.Tensor]
    scalars: dict[str, float] = field(default_factory=dict)


class StateSource(Protocol):
    """Gives the numbers of any fragment: a checkpoint, or the initial values."""

    def scalars(self, name: str) -> Mapping[str, float]:
        """Scalar optimizer states of a parameter; empty when it was never updated."""

    def tensor_names(self) -> Sequence[str]:
        """Tensor states held besides the master, for example exp_avg and exp_avg_sq; empty before any update."""

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """fp32 CPU tensor of `fragment.length` elements, of the master or of a named optimizer state."""


class Engine(Protocol):
    """Holds model and optimizer state; advances it by one global batch at a time."""

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        """Forward and backward of one micro-batch: gradients of `loss_sum * scale` are added up.

        Args:
            batch: Rows of this rank.
            scale: Scalar, one over the target weight of the whole global batch.
        """

    def update(self, learning_rate: float) -> torch.Tensor:
        """Clip, update every parameter and clear the gradients; returns the global gradient norm before clipping."""

    def evaluate(self, batch: MicroBatch) -> LossSums:
        """Forward only."""

    def logits(self, tokens: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        """Scores of the next token at every position, forward only; all ranks must call it with equal tokens.

        Args:
            tokens: int64 token ids that follow those in the cache. Shape: (B, T).
            cache: Keys and values of earlier tokens; the new ones are added to it.

        Returns:
            Shape: (B, T, V).
        """

    def snapshot(self) -> list[FragmentState]:
        """Copies in host memory of all that this rank owns; the training may go on at once."""

    def load(self, source: StateSource) -> None:
        """Set all that this rank owns, and the parameters computed with, from a source."""
