"""What one engine held, as the source that another one loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cluster.engines.protocol import MASTER, Fragment, FragmentState


class HeldState:
    """A snapshot of one rank, in host memory."""

    def __init__(self, states: list[FragmentState]) -> None:
        self._states = {state.fragment.name: state for state in states}

    def scalars(self, name: str) -> Mapping[str, float]:
        return self._states[name].scalars

    def tensor_names(self, name: str) -> Sequence[str]:
        return [state for state in self._states[name].tensors if state != MASTER]

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        held = self._states[fragment.name]
        assert held.fragment == fragment
        return held.tensors[state]

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        target.copy_(self.read(fragment, state))
