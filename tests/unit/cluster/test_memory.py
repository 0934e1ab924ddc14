"""Bytes of training state as ranks, stages and options change; the engines themselves are measured in integration."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest

from cluster.config import ZeroConfig
from cluster.memory import DEFAULT_BUCKET_ELEMENTS, StateBytes, state_bytes
from llm.accounting import count_parameters
from llm.config import ModelConfig, OptimizerConfig

MODEL = ModelConfig(vocab_size=512, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
P = count_parameters(MODEL).total
PADDING = 0.001
"""Partitions are whole numbers of elements: a few of 270,000."""
ADAMW = OptimizerConfig()


def held(
    zero: ZeroConfig | None,
    precision: Literal["fp32", "bf16"],
    world_size: int = 4,
    optimizer: OptimizerConfig = ADAMW,
    device_type: Literal["cpu", "cuda"] = "cpu",
) -> StateBytes:
    return state_bytes(MODEL, optimizer, zero=zero, precision=precision, world_size=world_size, device_type=device_type)


@pytest.mark.parametrize(
    ("stage", "precision", "whole", "parts"),
    [  # bytes for each parameter that every rank holds, and that the ranks share
        (0, "fp32", 4 + 8, 0),
        (0, "bf16", 4 + 8, 0),
        (1, "fp32", 4, 4 + 8),
        (1, "bf16", 2, 4 + 8),
        (2, "fp32", 4, 4 + 8),
        (2, "bf16", 2, 4 + 8),
        (3, "fp32", 0, 4 + 4 + 8),
        (3, "bf16", 0, 2 + 4 + 8),
    ],
)
@pytest.mark.parametrize("world_size", [1, 2, 16])
def test_resident_bytes_fall_with_the_ranks_when_the_stage_shares_them(
    stage: Literal[0, 1, 2, 3], precision: Literal["fp32", "bf16"], whole: int, parts: int, world_size: int
) -> None:
    expected = P * (whole + parts / world_size)
    assert held(ZeroConfig(stage=stage), precision, world_size).resident == pytest.approx(expected, rel=PADDING)


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [
        (OptimizerConfig(name="adamw"), 8),
        (OptimizerConfig(name="sgd"), 4),
        (OptimizerConfig(name="sgd", momentum=0.0, nesterov=False), 0),
    ],
)
def test_moments_are_those_of_the_optimizer_when_nothing_is_shared(
    optimizer: OptimizerConfig, bytes_per_parameter: int
) -> None:
    assert held(None, "fp32", 1, optimizer).optimizer_states == bytes_per_parameter * P


def test_muon_has_one_moment_when_a_matrix_is_in_a_layer() -> None:
    matrices = 2 * (96 * 3 * 96 + 96 * 96 + 3 * 96 * 256)
    states = held(None, "fp32", 1, OptimizerConfig(name="muon")).optimizer_states
    assert states == 4 * matrices + 8 * (P - matrices)


def test_whole_parameters_are_gathered_when_the_stage_is_three() -> None:
    assert held(ZeroConfig(stage=3), "bf16").gathered == 2 * P
    assert held(ZeroConfig(stage=2), "bf16").gathered == 0


def test_buckets_are_reserved_whole_when_the_device_is_a_gpu() -> None:
    zero = ZeroConfig(stage=2)
    assert held(zero, "bf16", device_type="cuda").buffers == 2 * DEFAULT_BUCKET_ELEMENTS + 4 * P
    assert held(zero, "bf16", device_type="cpu").buffers == 2 * P + 4 * P


def test_there_are_two_buckets_when_communication_overlaps() -> None:
    one, two = (
        held(ZeroConfig(stage=2, reduce_bucket_elements=1000, overlap_communication=overlaps), "fp32")
        for overlaps in (False, True)
    )
    assert two.buffers - one.buffers == 4 * 1000


def test_updated_state_is_in_host_memory_when_the_optimizer_is_offloaded() -> None:
    state = held(ZeroConfig(stage=3, offload_optimizer="cpu", offload_parameters="cpu"), "bf16")
    assert state.host == state.parameters + state.masters + state.optimizer_states + state.gradients
    assert held(ZeroConfig(stage=3), "bf16").host == 0


def test_peak_is_all_parts_when_added_up() -> None:
    state = held(ZeroConfig(stage=3), "bf16")
    parts = state.parameters + state.gathered + state.masters + state.optimizer_states
    assert state.peak == parts + state.gradients + state.buffers


def test_torch_stays_unloaded_when_memory_is_planned() -> None:
    program = "import sys, cluster.memory, llm.optimizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
