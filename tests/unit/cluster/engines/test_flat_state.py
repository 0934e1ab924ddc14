"""What an engine holds, taken out and set again: under every optimizer, in the same precision or another."""

from __future__ import annotations

import pytest
import torch
from held_state import HeldState

from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import FragmentState, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.topology import Precision
from llm.config import ModelConfig, OptimizerConfig
from llm.transformer import Transformer

MODEL = ModelConfig(vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "sgd": OptimizerConfig(name="sgd", momentum=0.9, nesterov=False),
    "plain sgd": OptimizerConfig(name="sgd", momentum=0.0, nesterov=False),
    "muon": OptimizerConfig(name="muon"),
}
STATES = {
    "adamw": {"master", "exp_avg", "exp_avg_sq"},
    "sgd": {"master", "momentum_buffer"},
    "plain sgd": {"master"},
    "muon": {"master", "exp_avg", "exp_avg_sq", "momentum_buffer"},
}


def engine(name: str, precision: Precision) -> TorchEngine:
    return TorchEngine(Transformer(MODEL, "sdpa"), optimizer=OPTIMIZERS[name], precision=precision)


def trained(name: str, precision: Precision) -> list[FragmentState]:
    made = engine(name, precision)
    made.load(InitialState(MODEL, seed=3))
    for step in range(2):
        update(made, step)
    return made.snapshot()


def update(made: TorchEngine, step: int) -> None:
    tokens = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(step))
    made.accumulate(
        MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.ones(2, 8), None),
        torch.tensor(1 / 16),
    )
    made.update(1e-2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_have_the_names_of_the_optimizer_when_taken(name: str) -> None:
    states = trained(name, "fp32")
    assert {tensor for state in states for tensor in state.tensors} == STATES[name]
    steps = {state.scalars.get("step") for state in states}
    assert steps == {"adamw": {2.0}, "muon": {2.0, None}}.get(name, {None})


@pytest.mark.parametrize(("before", "after"), [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_bit_equal_when_loaded_in_a_precision(name: str, before: Precision, after: Precision) -> None:
    states = trained(name, before)
    loaded = engine(name, after)
    loaded.load(HeldState(states))
    for held, wanted in zip(loaded.snapshot(), states, strict=True):
        assert held.fragment == wanted.fragment
        assert held.scalars == wanted.scalars
        assert held.tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(tensor, wanted.tensors[state]) for state, tensor in held.tensors.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_equal_when_loaded(name: str) -> None:
    undisturbed, loaded = engine(name, "fp32"), engine(name, "fp32")
    undisturbed.load(InitialState(MODEL, seed=3))
    for step in range(2):
        update(undisturbed, step)
    loaded.load(HeldState(trained(name, "fp32")))
    for made in (undisturbed, loaded):
        update(made, 2)
    for mine, other in zip(undisturbed.snapshot(), loaded.snapshot(), strict=True):
        assert all(torch.equal(tensor, other.tensors[state]) for state, tensor in mine.tensors.items())
