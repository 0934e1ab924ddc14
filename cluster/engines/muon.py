"""Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon/) where each rank holds only fragments of a matrix.

The rule is that of `torch.optim.Muon`: a running average of the gradients of a matrix is orthogonalised, which needs
the whole matrix. A rank updates its fragment of the average, puts the parameter together where it is cut,
orthogonalises the matrices that it is made of, and applies its own slice. At most one parameter is whole at a time.
Gradients come in clipped, and are not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist

from cluster.engines.flat_state import Placement
from llm.optimizer import MUON

MOMENTUM = "momentum_buffer"
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-7

Adjustment = Literal["match_rms_adamw", "original"]
Rows = Callable[[str, Sequence[int]], Sequence[int]]
"""Rows of each matrix that a parameter holds one below the other, by its name and shape."""


class Muon(torch.optim.AdamW):
    """Muon for the groups named "muon", AdamW for the others.

    `place` must be called before the first step. A step is collective where a matrix is cut: all ranks make it, with
    the same groups in the same order.

    Args:
        groups: Parameters with their `name` and `weight_decay`.
        momentum: Decay rate of the running average of gradients.
        nesterov: Orthogonalise the average with the newest gradient added once more.
        ns_steps: Newton-Schulz iterations.
        adjustment: How the rate follows from a matrix's shape.
        arithmetic: In what numbers a matrix is orthogonalised.
        adamw: Arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjustment: Adjustment,
        arithmetic: torch.dtype,
        **adamw: Any,
    ) -> None:
        super().__init__(list(groups), **adamw)
        self._momentum = momentum
        self._nesterov = nesterov
        self._ns_steps = ns_steps
        self._adjustment = adjustment
        self._arithmetic = arithmetic
        self._device = torch.device("cpu")
        self._placements: dict[int, list[Placement]] = {}
        self._cut: set[str] = set()
        self._rows: Rows = lambda name, shape: [shape[0]]

    def place(self, placements: Sequence[Placement], device: str, rows: Rows, *, partitioned: bool) -> None:
        """Say which part of each parameter lies where.

        Args:
            placements: Of every parameter, in an order that all ranks share; fragments may be empty.
            device: Where matrices are put together and orthogonalised.
            rows: How a parameter falls into matrices, its dimensions before the last taken as one.
            partitioned: Whether the ranks hold different fragments; collective where they do.
        """
        self._device = torch.device(device)
        self._rows = rows
        matrices = [placement for placement in placements if placement.fragment.group == MUON]
        self._placements = {}
        for placement in matrices:
            self._placements.setdefault(id(placement.flat), []).append(placement)
        whole = torch.tensor([placement.whole for placement in matrices], dtype=torch.int32, device=self._device)
        if partitioned:
            dist.all_reduce(whole, op=dist.ReduceOp.MAX)
        self._cut = {
            placement.fragment.name for placement, held in zip(matrices, whole.tolist(), strict=True) if not held
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every group from the gradients at hand."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["name"] != MUON]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for flat in group["params"] if group["name"] == MUON else []:
                if flat.grad is not None:
                    self._update(flat, group["lr"], group["weight_decay"])

    def _update(self, flat: torch.Tensor, learning_rate: float, weight_decay: float) -> None:
        assert flat.grad is not None
        state = self.state[flat]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(flat, requires_grad=False)
        for placement in self._placements[id(flat)]:
            gradient, momentum = placement.view(flat.grad), placement.view(state[MOMENTUM])
            momentum.lerp_(gradient, 1 - self._momentum)
            average = gradient.lerp(momentum, self._momentum) if self._nesterov else momentum
            whole = self._assembled(placement, average)
            if whole is not None:
                self._apply(placement, placement.view(flat), whole, learning_rate, weight_decay)

    def _apply(
        self,
        placement: Placement,
        master: torch.Tensor,
        average: torch.Tensor,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """Decay a fragment and move it along the orthogonalised matrices that it has a part of."""
        fragment = placement.fragment
        master.mul_(1 - learning_rate * weight_decay)
        first, end = 0, fragment.offset + fragment.length
        for matrix in torch.split(average, list(self._rows(fragment.name, fragment.shape))):
            low, high = max(first, fragment.offset), min(first + matrix.numel(), end)
            if low < high:
                direction = orthogonalized(matrix, self._ns_steps, self._arithmetic).reshape(-1)
                rate = learning_rate * rate_factor(self._adjustment, matrix.shape)
                own = direction.narrow(0, low - first, high - low).to(master.device)
                master.narrow(0, low - fragment.offset, high - low).add_(own, alpha=-rate)
            first += matrix.numel()

    def _assembled(self, placement: Placement, own: torch.Tensor) -> torch.Tensor | None:
        """The parameter that a fragment belongs to, as rows; None where there is nothing of it to update."""
        fragment = placement.fragment
        if fragment.name not in self._cut:
            return own.to(self._device).view(-1, fragment.shape[-1]) if fragment.length else None
        whole = torch.zeros(math.prod(fragment.shape), dtype=torch.float32, device=self._device)
        whole.narrow(0, fragment.offset, fragment.length).copy_(own)
        dist.all_reduce(whole)
        return whole.view(-1, fragment.shape[-1]) if fragment.length else None


def orthogonalized(matrix: torch.Tensor, steps: int, arithmetic: torch.dtype) -> torch.Tensor:
    """Newton-Schulz: U V^T of the singular value decomposition U S V^T, with singular values of about 0.7 to 1.2.

    Args:
        matrix: Shape: (A, B).
        steps: Iterations of the quintic polynomial.
        arithmetic: dtype that is computed in.

    Returns:
        Shape: (A, B), of that dtype.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    result = matrix.to(arithmetic)
    result = result.T if tall else result
    result = result / result.norm().clamp(min=_LEAST_NORM)
    for _ in range(steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if tall else result


def rate_factor(adjustment: Adjustment, shape: Sequence[int]) -> float:
    """What the learning rate of a matrix is multiplied by.

    `match_rms_adamw` gives updates of AdamW's size, so that its rate and decay may be kept (Liu et al.,
    arXiv:2502.16982); `original` is Jordan's.
    """
    rows, columns = shape
    if adjustment == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
