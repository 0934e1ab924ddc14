"""Weights to begin with, as fragments: each parameter read once, nothing of another optimizer."""

from __future__ import annotations

import pytest
import torch
from held_state import HeldState

from cluster.engines.initial_state import WeightsByName, WeightsOf
from cluster.engines.protocol import MASTER, Fragment, FragmentState
from cluster.errors import RunRefusedError

WHOLE = torch.arange(12.0).reshape(3, 4)


def fragment(offset: int, length: int, name: str = "weight", shape: tuple[int, ...] = (3, 4)) -> Fragment:
    return Fragment(name, "decay", shape, offset, length)


@pytest.fixture
def reads() -> list[str]:
    return []


@pytest.fixture
def weights(reads: list[str]) -> WeightsByName:
    def read(name: str) -> torch.Tensor:
        reads.append(name)
        return WHOLE

    return WeightsByName(read)


def test_fragments_are_their_parts_of_a_parameter(weights: WeightsByName) -> None:
    target = torch.empty(5)
    weights.read_into(fragment(3, 5), MASTER, target)
    assert torch.equal(target, WHOLE.reshape(-1)[3:8])
    assert torch.equal(weights.read(fragment(0, 12), MASTER), WHOLE.reshape(-1))


def test_a_parameter_is_read_once_when_its_fragments_follow_one_another(
    weights: WeightsByName, reads: list[str]
) -> None:
    for name in ("one", "other"):
        for offset in (0, 4, 8):
            weights.read(fragment(offset, 4, name), MASTER)
    assert reads == ["one", "other"]


def test_a_parameter_of_another_shape_is_refused(weights: WeightsByName) -> None:
    with pytest.raises(RunRefusedError, match=r"weight has the shape \[3, 4\] .* and \[4, 3\] in the model"):
        weights.read(fragment(0, 4, shape=(4, 3)), MASTER)


def test_weights_come_without_the_state_of_the_optimizer_that_made_them() -> None:
    states = {MASTER: WHOLE.reshape(-1), "exp_avg": torch.ones(12)}
    held = WeightsOf(HeldState([FragmentState(fragment(0, 12), states, {"step": 3.0})]))
    assert (held.scalars("weight"), held.tensor_names("weight")) == ({}, ())
    target = torch.empty(12)
    held.read_into(fragment(0, 12), MASTER, target)
    assert torch.equal(target, WHOLE.reshape(-1))
    assert torch.equal(held.read(fragment(0, 12), MASTER), target)


def test_weights_do_not_give_the_state_of_an_optimizer(weights: WeightsByName) -> None:
    held = HeldState([FragmentState(fragment(0, 12), {"exp_avg": torch.ones(12)}, {})])
    for source in (weights, WeightsOf(held)):
        with pytest.raises(KeyError, match="exp_avg"):
            source.read_into(fragment(0, 12), "exp_avg", torch.empty(12))
