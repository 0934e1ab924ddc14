"""The bytes of training state that are predicted, against what the engines hold."""

from __future__ import annotations

import gc
from functools import partial
from typing import Literal

import pytest
import torch
from gloo import run_ranks

from cluster.config import ZeroConfig
from cluster.engines.initial_state import InitialState
from cluster.engines.protocol import Engine, MicroBatch
from cluster.engines.torch_engine import TorchEngine
from cluster.memory import state_bytes
from cluster.topology import Precision, Topology
from llm.config import ModelConfig, OptimizerConfig, OptimizerName
from llm.transformer import Transformer

pytestmark = pytest.mark.slow

MODEL = ModelConfig(vocab_size=512, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
BUCKET_ELEMENTS = 1000
TOLERANCE = 0.02
"""Padding of partitions, step counters, the batch, and buckets of 1,000 elements, beside 270,000 parameters."""
CASES: list[tuple[Literal[0, 1, 2, 3] | None, Precision, OptimizerName]] = [
    (None, "fp32", "adamw"),
    (None, "bf16", "adamw"),
    (0, "fp32", "adamw"),
    (0, "bf16", "muon"),
    (1, "fp32", "adamw"),
    (1, "bf16", "adamw"),
    (2, "fp32", "adamw"),
    (2, "fp32", "sgd"),
    (2, "bf16", "muon"),
    (3, "fp32", "adamw"),
    (3, "bf16", "adamw"),
]


def zero_config(stage: Literal[0, 1, 2, 3] | None, precision: Precision) -> ZeroConfig | None:
    if not stage:
        return None if stage is None else ZeroConfig(stage=stage)
    is_last = stage == 3
    return ZeroConfig(
        stage=stage,
        reduce_bucket_elements=None if stage == 1 and precision == "bf16" else BUCKET_ELEMENTS,
        parameter_persistence_threshold_elements=0 if is_last else None,
        prefetch_bucket_elements=0 if is_last else None,
    )


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def make_engine(
    topology: Topology, stage: Literal[0, 1, 2, 3] | None, precision: Precision, optimizer: OptimizerConfig
) -> Engine:
    build_model = partial(Transformer, MODEL, "sdpa")
    zero = zero_config(stage, precision)
    if zero is None:
        return TorchEngine(build_model(), optimizer=optimizer, precision=precision)
    from cluster.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        build_model,
        optimizer=optimizer,
        zero=zero,
        precision=precision,
        micro_batch_size=1,
        micro_batches=2,
        topology=topology,
    )


def measured(topology: Topology, index: int) -> tuple[int, int]:
    """Bytes between the micro-batches of the second step, and after it."""
    stage, precision, name = CASES[index]
    tokens = torch.randint(0, 512, (1, 16))
    batch = MicroBatch(tokens=tokens, targets=tokens, loss_weights=torch.ones(1, 16), document_ids=None)
    before = live_bytes()
    engine = make_engine(topology, stage, precision, OptimizerConfig(name=name))
    engine.load(InitialState(MODEL, 1))
    for _ in range(2):
        engine.accumulate(batch, torch.tensor(1 / 32))
        between = live_bytes() - before
        engine.accumulate(batch, torch.tensor(1 / 32))
        engine.update(1e-3)
    return between, live_bytes() - before


@pytest.mark.parametrize("index", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_state_is_predicted_when_a_rank_holds_it(index: int) -> None:
    stage, precision, name = CASES[index]
    state = state_bytes(
        MODEL,
        OptimizerConfig(name=name),
        zero=zero_config(stage, precision),
        precision=precision,
        world_size=2,
        device_type="cpu",
    )
    always_there = 0
    if stage == 3:
        always_there = state.gradients
    elif stage == 1 and precision == "bf16":
        always_there = state.gradients * 4 // 6  # the fp32 sums, not the bf16 gradients
    for between, after in run_ranks(measured, 2, index):
        assert between == pytest.approx(state.resident + state.gradients, rel=TOLERANCE)
        assert after == pytest.approx(state.resident + always_there, rel=TOLERANCE)
