"""From a configuration to an engine."""

from __future__ import annotations

from dataclasses import replace

import torch

from cluster.attempt import EngineRequest
from cluster.config import RunConfig, TrainConfig
from cluster.engines.builders import torch_engine
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import MicroBatch
from cluster.resolution import resolve_layout
from cluster.topology import Topology
from data_pipeline.config import DataConfig
from llm.config import ModelConfig

MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=24,
)
CONFIG = RunConfig(name="run", data=DataConfig(dataset="data"), model=MODEL)


def tensors_kept(config: RunConfig) -> int:
    """Tensors that a forward pass of the engine keeps for the backward pass."""
    layout, _ = resolve_layout(config, Topology(), zero_stage=None)
    engine = torch_engine(EngineRequest(model=MODEL, config=config, layout=layout, topology=Topology()))
    engine.load(InitialState(MODEL, 1))
    tokens = torch.arange(18).reshape(2, 9)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        engine.accumulate(MicroBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 8), None), torch.tensor(1.0))
    return len(kept)


def test_engine_keeps_less_when_the_configuration_asks_for_activation_checkpointing() -> None:
    recomputing = replace(CONFIG, train=TrainConfig(activation_checkpointing="full"))
    assert tensors_kept(recomputing) < tensors_kept(CONFIG) / 2
