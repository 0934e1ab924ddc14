"""Parameter and operation counts, against the module itself and torch's own counter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm.accounting import (
    FlopCount,
    ParameterCount,
    count_parameters,
    flops_per_token,
    model_flops_utilization,
    parameter_shapes,
    peak_flops,
)
from llm.config import ModelConfig
from llm.errors import ModelConfigError
from llm.transformer import Transformer

SHAPES = {
    "tied": ModelConfig(vocab_size=100, hidden_size=24, num_attention_heads=4, intermediate_size=40),
    "untied, grouped": ModelConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False
    ),
    "wide heads, qk_norm": ModelConfig(
        vocab_size=70, hidden_size=12, num_attention_heads=3, num_key_value_heads=1, head_dim=8, qk_norm=True
    ),
}

FLOP_TOLERANCE = 0.02
"""PaLM's 6 N also counts the norm scales as multiplications: under 2 % at these sizes."""


def meta_model(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, "eager")


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_parameter_shapes_equal_module_in_name_shape_and_order_when_built(config: ModelConfig) -> None:
    actual = [(name, tuple(parameter.shape)) for name, parameter in meta_model(config).named_parameters()]
    assert list(parameter_shapes(config).items()) == actual


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_total_equals_module_when_built(config: ModelConfig) -> None:
    actual = sum(parameter.numel() for parameter in meta_model(config).parameters())
    assert count_parameters(config).total == actual


def test_parts_are_counted_apart_when_untied_with_qk_norm() -> None:
    config = ModelConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=5,
        tie_word_embeddings=False,
        qk_norm=True,
    )
    assert count_parameters(config) == ParameterCount(
        embedding=80,
        attention=2 * (64 + 32 + 32 + 64),
        feed_forward=2 * 3 * 40,
        norms=2 * (8 + 8 + 4 + 4) + 8,
        output=80,
        total=80 + 384 + 240 + 56 + 80,
    )


def test_count_refuses_when_vocabulary_is_unknown() -> None:
    with pytest.raises(ModelConfigError) as error:
        count_parameters(ModelConfig())
    assert str(error.value) == (
        "model.vocab_size is null: the size of the embedding is not known yet. "
        "Set it, or fill it in from the tokenizer of the dataset first."
    )


def test_flops_follow_palm_when_heads_are_wider_than_the_model() -> None:
    config = SHAPES["wide heads, qk_norm"]
    matrices = 6 * count_parameters(config).total
    square = 12 * config.num_hidden_layers * (3 * 8) * 64
    assert flops_per_token(config, 64) == FlopCount(full=matrices + square, causal=matrices + square / 2)


def added_product_flops(total: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def test_flops_match_torch_counter_when_embedding_is_tied() -> None:
    config = ModelConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160
    )
    tokens = torch.zeros(2, 32, dtype=torch.long, device="meta")
    model = meta_model(config)
    counted_too = {torch.ops.aten.addmm_: added_product_flops}  # the counter knows addmm, not the one in place
    with FlopCounterMode(display=False, custom_mapping=counted_too) as counter:
        model(tokens, tokens).objective_sum.backward()
    expected = flops_per_token(config, 32).full * tokens.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=FLOP_TOLERANCE)


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


def test_torch_stays_unloaded_when_planning_modules_are_imported() -> None:
    program = (
        "import sys, llm, llm.accounting, llm.config, llm.schedule, llm.errors, llm.ngram;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
