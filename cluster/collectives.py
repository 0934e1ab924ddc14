"""The few words that ranks exchange besides gradients: sums of small numbers and plain objects, over the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist

Value = TypeVar("Value")


class Collectives:
    """Small collectives over gloo, so that a GPU never has to be waited for; without a process group, of one rank."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._alone = not dist.is_initialized()
        if not self._alone and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64. Shape: the same number of values on every rank."""
        if self._alone:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return [float(value) for value in tensor]

    def from_main(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self._alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def to_main(self, value: Value) -> list[Value] | None:
        """Every rank's value, in the order of ranks, on rank 0; None on the others."""
        if self._alone:
            return [value]
        is_main = dist.get_rank() == 0
        values: list[Value | None] | None = [None] * dist.get_world_size() if is_main else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return cast("list[Value] | None", values)

    def first_error(self, error: str | None) -> str | None:
        """The error of the lowest rank that has one; None when no rank has."""
        if self._alone:
            return error
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error, group=self._group)
        return next((found for found in errors if found is not None), None)
