"""The engine protocol: what the training loop asks of whatever holds the model's state.

Two real implementations: `torch_engine` (one process: reference, baseline, and what runs where Ray is absent) and
`deepspeed_engine` (ZeRO 0-3). A *fragment* is the contiguous part of one parameter whose fp32 master and optimizer
state live in one rank; the fragments of all ranks cover every parameter exactly once. Checkpoints are written and read
in fragments, and initial values are assigned through the same door, so that no topology has a path of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:  # what reads checkpoints needs no model, whose imports take 70 MiB
    from llm.generation import NewTokens
    from llm.kv_cache import KeyValueCache
    from llm.loss import LossSums

MASTER = "master"


@dataclass(frozen=True)
class MicroBatch:
    """One worker's rows of one forward pass, on the device.

    Shape: tokens, targets, loss_weights and document_ids are [B, T]; int64, int64, float32, int32. Targets of a task
    that learns labels are as its head takes them (`llm.heads`).
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    loss_weights: torch.Tensor
    document_ids: torch.Tensor | None
    dropout_keys: torch.Tensor | None = None
    """int64 key of each row; None where nothing is dropped. Shape: [B]."""


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

    def tensor_names(self, name: str) -> Sequence[str]:
        """Tensor states of a parameter besides the master, for example exp_avg and exp_avg_sq; empty before any."""

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """fp32 CPU tensor of `fragment.length` elements, of the master or of a named optimizer state."""

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a one-dimensional tensor of any device to what `read` gives, holding little beside it."""


class Forward(Protocol):
    """What it takes to evaluate a model and to let it write."""

    def evaluate(self, batch: MicroBatch) -> LossSums:
        """Forward only."""

    def outputs(self, batch: MicroBatch) -> torch.Tensor:
        """What the model says at every position, forward only; all ranks must call it. Shape: [B, T, C]."""

    def next_logits(self, new: NewTokens, cache: KeyValueCache) -> torch.Tensor:
        """Scores of the token after the last of each row, forward only; all ranks must call it with equal tokens.

        Args:
            new: Tokens that follow those in the cache.
            cache: Keys and values of earlier tokens; the new ones are added to it.

        Returns:
            Shape: (B, V).
        """


class Engine(Forward, Protocol):
    """Holds model and optimizer state; advances it by one global batch at a time."""

    def begin_step(self, micro_batches: int) -> None:
        """Tell how many times `accumulate` will be called before the coming `update`; the same number on every rank.

        Until it is told the number is the one that the engine was made with. No gradients may have been added up.
        """

    def accumulate(self, batch: MicroBatch, scale: torch.Tensor) -> LossSums:
        """Forward and backward of one micro-batch: gradients of `loss_sum * scale` are added up.

        Args:
            batch: Rows of this rank.
            scale: Scalar, one over the target weight of the whole global batch.
        """

    def update(self, learning_rate: float) -> torch.Tensor:
        """Clip, update every parameter and clear the gradients.

        Where the norm of the gradients is not finite nothing is updated: masters, optimizer states and step counts stay
        bit for bit what they were, and the gradients are cleared. All ranks then agree, because the norm is global.

        Args:
            learning_rate: Rate of this step, for all parameters.

        Returns:
            Scalar: global 2-norm of the gradients before clipping; inf or nan where nothing was updated.
        """

    def discard(self) -> None:
        """Drop what `accumulate` added up since the last update, as if those micro-batches had never been run.

        No communication; every rank must do it at the same place, before the next `accumulate`.
        """

    def snapshot(self, reuse: Sequence[FragmentState] = ()) -> list[FragmentState]:
        """Copies in host memory of all that this rank owns; the training may go on at once.

        Args:
            reuse: An earlier snapshot that nobody needs any more; its memory is taken where the fragments are the same.
                Memory that was touched before takes a third of the time to fill.
        """

    def load(self, source: StateSource) -> None:
        """Set all that this rank owns, and the parameters computed with, from a source."""
