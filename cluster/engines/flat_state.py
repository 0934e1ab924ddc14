"""Fragments inside flat fp32 tensors: the one mechanism by which every engine is read and written.

An engine says, for each fragment it owns, which flat tensor holds the master and where it begins; the optimizer keeps
states of the same shape under the same key. DeepSpeed's partitions and plain parameters are both described this way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cluster.engines.protocol import MASTER, Fragment, FragmentState, StateSource


@dataclass(frozen=True)
class Placement:
    """A fragment and its place: elements [start, start + fragment.length) of the one-dimensional view of `flat`."""

    fragment: Fragment
    flat: torch.Tensor
    start: int

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's part of a tensor shaped like `flat`."""
        return tensor.detach().view(-1).narrow(0, self.start, self.fragment.length)

    @property
    def whole(self) -> bool:
        """Whether the fragment is the whole parameter."""
        return self.fragment.length == math.prod(self.fragment.shape)


def snapshot(
    placements: Iterable[Placement], optimizer: torch.optim.Optimizer, reuse: Iterable[FragmentState] = ()
) -> list[FragmentState]:
    """Copy masters and optimizer states of the placed fragments to host memory.

    Args:
        placements: The fragments.
        optimizer: Holds their states.
        reuse: An earlier snapshot, whose tensors are overwritten where they belong to the same fragments.
    """
    spare = {(held.fragment, name): tensor for held in reuse for name, tensor in held.tensors.items()}
    states = []
    for placement in placements:
        own = optimizer.state.get(placement.flat, {})
        fragment = placement.fragment
        tensors = {MASTER: _host_copy(placement.view(placement.flat), spare.get((fragment, MASTER)))}
        scalars: dict[str, float] = {}
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and value.numel() == placement.flat.numel() and value.dim() > 0:
                tensors[name] = _host_copy(placement.view(value), spare.get((fragment, name)))
            else:
                scalars[name] = float(value)
        states.append(FragmentState(fragment, tensors, scalars))
    return states


def load(placements: Iterable[Placement], optimizer: torch.optim.Optimizer, source: StateSource) -> None:
    """Set masters and optimizer states of the placed fragments from a source; padding between fragments becomes 0."""
    placements = list(placements)
    for flat in {id(placement.flat): placement.flat for placement in placements}.values():
        flat.detach().zero_()
        optimizer.state.pop(flat, None)
    for placement in placements:
        fragment, flat = placement.fragment, placement.flat
        source.read_into(fragment, MASTER, placement.view(flat))
        scalars, tensors = source.scalars(fragment.name), source.tensor_names(fragment.name)
        own = optimizer.state[flat] if scalars or tensors else {}
        for name, value in scalars.items():
            own[name] = torch.tensor(value, dtype=torch.float32, device=_scalar_device(optimizer, flat))
        for name in tensors:
            if name not in own:
                own[name] = torch.zeros_like(flat, requires_grad=False)
            source.read_into(fragment, name, placement.view(own[name]))


def _host_copy(tensor: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    if target is not None:
        return target.copy_(tensor.detach())
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True)


def _scalar_device(optimizer: torch.optim.Optimizer, flat: torch.Tensor) -> torch.device:
    """torch keeps `step` beside the parameter for fused and capturable optimizers, on the CPU otherwise."""
    fused = bool(optimizer.defaults.get("fused")) or bool(optimizer.defaults.get("capturable"))
    return flat.device if fused else torch.device("cpu")
