"""Operation counts: PaLM's law, and the exact products against torch's own counter on the real model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm.accounting import count_parameters
from llm.activation_checkpointing import ActivationCheckpointing
from llm.config import ModelConfig
from llm.flops import (
    FlopCount,
    PassFlops,
    flops_per_token,
    forward_flops,
    model_flops_utilization,
    peak_flops,
    step_flops,
)
from llm.transformer import Transformer

GPT2 = {
    "position_embedding": "learned",
    "max_position_embeddings": 64,
    "gated_mlp": False,
    "hidden_act": "gelu_pytorch_tanh",
    "normalization": "layer_norm",
    "attention_bias": True,
    "mlp_bias": True,
}
SEQUENCES, SEQ_LEN = 2, 24


def shape(**fields: object) -> ModelConfig:
    plain = {
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    return ModelConfig(**{**plain, **fields})  # type: ignore[arg-type]


SHAPES = {
    "Llama": shape(),
    "GPT-2": shape(**GPT2),
    "grouped": shape(num_key_value_heads=2),
    "one key": shape(num_key_value_heads=1),
    "untied": shape(tie_word_embeddings=False),
    "odd": shape(vocab_size=73, hidden_size=21, num_attention_heads=3, head_dim=10, intermediate_size=37),
    "windows": shape(sliding_window=7, layer_types=("sliding_attention", "full_attention")),
    "sandwich, dropout": shape(sandwich_norm=True, residual_dropout=0.1, qk_norm=True),
}

LAW_TOLERANCE = 0.02
"""PaLM's 6 N also counts the norm scales as multiplications: under 2 % at these sizes."""


def added_product_flops(total: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def counted(config: ModelConfig, mode: ActivationCheckpointing = "off", *, training: bool = True) -> int:
    with torch.device("meta"):
        model = Transformer(config, "eager", mode)
        tokens = torch.zeros(SEQUENCES, SEQ_LEN, dtype=torch.long)
    counted_too = {torch.ops.aten.addmm_: added_product_flops}  # the counter knows addmm, not the one in place
    with FlopCounterMode(display=False, custom_mapping=counted_too) as counter, torch.set_grad_enabled(training):
        loss = model(tokens, tokens).objective_sum
        if training:
            loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_products_equal_torch_counter_when_a_step_is_made(config: ModelConfig) -> None:
    assert step_flops(config, SEQ_LEN, SEQUENCES).total == counted(config)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_products_equal_torch_counter_when_the_pass_is_forward_alone(config: ModelConfig) -> None:
    assert forward_flops(config, SEQ_LEN, SEQUENCES).total == counted(config, training=False)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_recomputed_products_equal_torch_counter_when_layers_are_checkpointed(config: ModelConfig) -> None:
    step = step_flops(config, SEQ_LEN, SEQUENCES, "full")
    assert step.total == counted(config)
    assert step.total + step.recomputed.total == counted(config, "full")


def test_nothing_is_recomputed_when_checkpointing_is_off() -> None:
    assert step_flops(shape(), SEQ_LEN).recomputed == PassFlops()


def test_visible_scores_equal_pairs_of_the_masks_when_some_layers_slide() -> None:
    config = SHAPES["windows"]
    behind = torch.arange(SEQ_LEN)[:, None] - torch.arange(SEQ_LEN)
    sliding, full = int(((behind >= 0) & (behind < 7)).sum()), int((behind >= 0).sum())
    flops = forward_flops(config, SEQ_LEN, SEQUENCES)
    assert flops.visible_scores == SEQUENCES * (2 * sliding + full) * 4 * 32
    assert flops.visible_total == flops.total - flops.scores + flops.visible_scores


def test_every_pair_before_is_visible_when_the_window_is_longer_than_the_sequence() -> None:
    long = forward_flops(shape(sliding_window=SEQ_LEN + 1), SEQ_LEN)
    assert long == forward_flops(shape(), SEQ_LEN)


def test_products_are_those_of_chosen_experts_and_router_when_there_are_experts() -> None:
    dense = forward_flops(shape(), SEQ_LEN)
    flops = forward_flops(shape(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20), SEQ_LEN)
    assert flops.feed_forward == 3 * SEQ_LEN * 2 * (3 * 2 * 32 * 20)
    assert flops.router == 3 * SEQ_LEN * 2 * 32 * 6
    assert flops.total - flops.feed_forward - flops.router == dense.total - dense.feed_forward


def test_all_products_of_experts_are_made_again_when_layers_are_checkpointed() -> None:
    step = step_flops(shape(num_experts=6), SEQ_LEN, 1, "full")
    assert step.recomputed.feed_forward == step.forward.feed_forward
    assert step.recomputed.router == step.forward.router


def test_law_and_products_agree_when_the_model_is_dense_and_tied() -> None:
    config = shape(vocab_size=256, hidden_size=64, intermediate_size=160)
    law = flops_per_token(config, SEQ_LEN).full * SEQUENCES * SEQ_LEN
    assert step_flops(config, SEQ_LEN, SEQUENCES).total == pytest.approx(law, rel=LAW_TOLERANCE)


def test_law_counts_active_parameters_when_there_are_experts() -> None:
    config = shape(num_experts=6, num_experts_per_tok=2)
    counts = count_parameters(config)
    assert counts.active < counts.total
    assert flops_per_token(config, 64).full == 6 * counts.active + 12 * 3 * 32 * 64


def test_flops_follow_palm_when_heads_are_wider_than_the_model() -> None:
    config = shape(head_dim=16, num_attention_heads=3)
    matrices = 6 * count_parameters(config).total
    square = 12 * config.num_hidden_layers * (3 * 16) * 64
    assert flops_per_token(config, 64) == FlopCount(full=matrices + square, causal=matrices + square / 2)


@pytest.mark.parametrize(
    ("device_name", "expected"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA H20", None),
        ("Intel(R) Xeon(R)", None),
    ],
)
def test_peak_is_looked_up_when_device_is_named(device_name: str, expected: float | None) -> None:
    assert peak_flops(device_name) == expected


@pytest.mark.parametrize(
    ("tokens_per_second", "peak", "expected"),
    [
        (50.0, 1000.0, 0.5),
        (100.0, 1000.0, 1.0),
        (101.0, 1000.0, None),
        (50.0, None, None),
        (0.0, 1000.0, 0.0),
    ],
)
def test_utilization_is_a_fraction_or_nothing_when_computed(
    tokens_per_second: float, peak: float | None, expected: float | None
) -> None:
    assert model_flops_utilization(tokens_per_second, 10.0, peak) == expected
