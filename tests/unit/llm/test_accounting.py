"""Parameter counts, against the module itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from llm.accounting import (
    ParameterCount,
    count_parameters,
    parameter_parts,
    parameter_shapes,
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
        active=80 + 384 + 240 + 56 + 80,
    )


EXPERTS = ModelConfig(
    vocab_size=10,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_experts=5,
    num_experts_per_tok=3,
    moe_intermediate_size=7,
)


def test_unused_experts_are_not_active_when_a_token_meets_some() -> None:
    counts = count_parameters(EXPERTS)
    assert counts.feed_forward == 2 * (5 * 8 + 5 * 3 * 8 * 7)
    assert counts.total - counts.active == 2 * (5 - 3) * 3 * 8 * 7


def test_experts_are_parts_of_their_own_when_they_lie_in_one_parameter() -> None:
    shapes = parameter_shapes(EXPERTS)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert shapes[name] == (5, 14, 8)
    assert parameter_parts(name, shapes[name], EXPERTS) == {
        f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": 7 for expert in range(5) for part in ("gate", "up")
    }
    name = "model.layers.1.mlp.experts.down_proj"
    assert parameter_parts(name, shapes[name], EXPERTS) == {
        f"model.layers.1.mlp.experts.{expert}.down_proj.weight": 8 for expert in range(5)
    }


def test_count_refuses_when_vocabulary_is_unknown() -> None:
    with pytest.raises(ModelConfigError) as error:
        count_parameters(ModelConfig())
    assert str(error.value) == (
        "model.vocab_size is null: the size of the embedding is not known yet. "
        "Set it, or fill it in from the tokenizer of the dataset first."
    )


def test_torch_stays_unloaded_when_planning_modules_are_imported() -> None:
    modules = [
        "accounting",
        "activation_memory",
        "config",
        "errors",
        "flops",
        "memory",
        "ngram",
        "optimizer",
        "schedule",
    ]
    program = f"import sys, llm, {', '.join(f'llm.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
