"""The state before the first step, as a source of fragments: what is read at step 0 in place of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from cluster.engines.protocol import MASTER, Fragment, StateSource
from cluster.errors import RunRefusedError
from llm.accounting import HEAD
from llm.config import ModelConfig
from llm.initialization import initial_value


class _NothingGathered:
    """Of an optimizer that has seen nothing yet."""

    def scalars(self, name: str) -> Mapping[str, float]:
        """No parameter has been updated yet."""
        return {}

    def tensor_names(self, name: str) -> Sequence[str]:
        """The optimizer has no state yet."""
        return ()


class InitialState(_NothingGathered):
    """Initial values by (seed, name). Any rank can make any fragment, so no topology changes them."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """The fragment's initial fp32 values; one whole parameter is held at a time."""
        if state != MASTER:
            raise KeyError(f"the initial state holds no {state!r}")
        value = initial_value(fragment.name, fragment.shape, self._config, self._seed)
        return value.reshape(-1)[fragment.offset : fragment.offset + fragment.length]

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a tensor to the fragment's initial values."""
        target.copy_(self.read(fragment, state))


class WeightsByName(_NothingGathered):
    """Weights that come one whole parameter at a time, for an optimizer that has seen nothing yet.

    The last parameter is kept: the fragments of one come one after another.

    Args:
        read: Gives a parameter by its name, in its own shape; fp32 on the CPU.
    """

    def __init__(self, read: Callable[[str], torch.Tensor]) -> None:
        self._read = read
        self._name: str | None = None
        self._parameter = torch.empty(0)

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """The fragment's values.

        Raises:
            RunRefusedError: The parameter has another shape.
        """
        _require_weights(state)
        if self._name != fragment.name:
            self._parameter = torch.empty(0)  # before the next one comes, so that only one is held
            self._name, self._parameter = fragment.name, self._read(fragment.name)
        if tuple(self._parameter.shape) != fragment.shape:
            raise RunRefusedError(
                f"parameter {fragment.name} has the shape {list(self._parameter.shape)} in the weights to begin with, "
                f"and {list(fragment.shape)} in the model. Leave the model's shape out of the configuration."
            )
        return self._parameter.reshape(-1)[fragment.offset : fragment.offset + fragment.length]

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a tensor to the fragment's values."""
        target.copy_(self.read(fragment, state))


class WeightsOf(_NothingGathered):
    """The weights of another state, a checkpoint's, without what its optimizer had gathered."""

    def __init__(self, state: StateSource) -> None:
        self._state = state

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """The fragment's values there."""
        _require_weights(state)
        return self._state.read(fragment, state)

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a tensor to the fragment's values there."""
        _require_weights(state)
        self._state.read_into(fragment, state, target)


class WithFreshHead(_NothingGathered):
    """Weights for the trunk, and initial values for the head of a task that they were not trained for.

    Args:
        trunk: Of all parameters but the head's.
        fresh: Of the whole model.
    """

    def __init__(self, trunk: StateSource, fresh: InitialState) -> None:
        self._trunk = trunk
        self._fresh = fresh

    def read(self, fragment: Fragment, state: str) -> torch.Tensor:
        """The fragment's values."""
        return self._source(fragment).read(fragment, state)

    def read_into(self, fragment: Fragment, state: str, target: torch.Tensor) -> None:
        """Set a tensor to the fragment's values."""
        self._source(fragment).read_into(fragment, state, target)

    def _source(self, fragment: Fragment) -> StateSource:
        return self._fresh if fragment.name.startswith(HEAD) else self._trunk


def _require_weights(state: str) -> None:
    if state != MASTER:
        raise KeyError(f"weights to begin with hold no {state!r}")
