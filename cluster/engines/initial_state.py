"""The state before the first step, as a source of fragments: what is read at step 0 in place of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cluster.engines.protocol import MASTER, Fragment
from llm.config import ModelConfig
from llm.initialization import initial_value


class InitialState:
    """Initial values by (seed, name). Any rank can make any fragment, so no topology changes them."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def scalars(self, name: str) -> Mapping[str, float]:
        """No parameter has been updated yet."""
        return {}

    def tensor_names(self, name: str) -> Sequence[str]:
        """The optimizer has no state yet."""
        return ()

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """The fragment's initial fp32 values; one whole parameter is held at a time."""
        if state != MASTER:
            raise KeyError(f"the initial state holds no {state!r}")
        value = initial_value(fragment.name, fragment.shape, self._config, self._seed)
        return value.reshape(-1)[fragment.offset : fragment.offset + fragment.length]

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a tensor to the fragment's initial values."""
        target.copy_(self.read(fragment, state))
