"""Fragments inside flat fp32 tensors: the one mechanism by which every engine is read and written.

An engine says, for each fragment it owns, which flat tensor holds the master and where it begins; the optimizer keeps
states of the same shape under the same key. DeepSpeed's partitions and plain parameters are both described this way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cluster.engine import MASTER, Fragment, FragmentState, StateSource


@dataclass(frozen=True)
class Placement:
    """A fragment and its place: elements [start, start + fragment.length) of the one-dimensional view of `flat`."""

    fragment: Fragment
    flat: torch.Tensor
    start: int

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's part of a tensor shaped like `flat`."""
        return tensor.detach().view(-1).narrow(0, self.start, self.fragment.length)


def snapshot(placements: Iterable[Placement], optimizer: torch.optim.Optimizer) -> list[FragmentState]:
    """Copy masters and optimizer states of the placed fragments to host memory."""
    states = []
    for placement in placements:
        own = optimizer.state.get(placement.flat, {})
        tensors = {MASTER: _host_copy(placement.view(placement.flat))}
        scalars: dict[str, float] = {}
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and value.numel() == placement.flat.numel() and value.dim() > 0:
                tensors[name] = _host_copy(placement.view(value))
            else:
                scalars[name] = float(value)
        states.append(FragmentState(placement.fragment, tensors, scalars))
    return states


def load(placements: Iterable[Placement], optimizer: torch.optim.Optimizer, source: StateSource) -> None:
    """Set masters and optimizer states of the placed fragments from a source; padding between fragments becomes 0."""
    placements = list(placements)
    for flat in {id(placement.flat): placement.flat for placement in placements}.values():
        flat.detach().zero_()
        optimizer.state.pop(flat, None)
    for placement in placements:
        fragment, flat = placement.fragment, placement.flat
        placement.view(flat).copy_(source.read(fragment, MASTER))
        own = optimizer.state[flat] if source.tensor_names() or source.scalars(fragment.name) else {}
        for name, value in source.scalars(fragment.name).items():
            own[name] = torch.tensor(value, dtype=torch.float32, device=_scalar_device(optimizer, flat))
        for name in source.tensor_names():
            if name not in own:
                own[name] = torch.zeros_like(flat, requires_grad=False)
            placement.view(own[name]).copy_(source.read(fragment, name))


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True)


def _scalar_device(optimizer: torch.optim.Optimizer, flat: torch.Tensor) -> torch.device:
    """torch keeps `step` beside the parameter for fused and capturable optimizers, on the CPU otherwise."""
    fused = bool(optimizer.defaults.get("fused")) or bool(optimizer.defaults.get("capturable"))
    return flat.device if fused else torch.device("cpu")
