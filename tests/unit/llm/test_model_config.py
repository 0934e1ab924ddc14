"""The model's configuration: what contradicts itself is refused with the remedy, what follows is right."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from llm.model_config import ModelConfig, RopeScaling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, and must be above 0."),
        ({"num_attention_heads": 3}, "num_attention_heads 3 does not divide hidden_size 256: .*or set head_dim."),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 8: .*Take a divisor."),
        ({"head_dim": 7}, "the head size is 7, which is odd: .*or set an even head_dim."),
        ({"residual_dropout": 1.0}, "residual_dropout is 1.0: a fraction of at least 0 and under 1 is dropped."),
        ({"position_embedding": "learned"}, "max_position_embeddings is null, .*Set it to at least data.seq_len."),
        (
            {"position_embedding": "learned", "max_position_embeddings": 8, "rope_local_base_freq": 1e4},
            "rope_local_base_freq is set, and position_embedding is learned: .*set position_embedding to rope.",
        ),
        (
            {"position_embedding": "learned", "max_position_embeddings": 8, "rope_theta": 5e5},
            "rope_theta is set, and position_embedding is learned: .*set position_embedding to rope.",
        ),
        ({"layer_types": ()}, "layer_types is empty: .*Leave it out for all alike."),
        ({"layer_types": ("sliding_attention",)}, "layer_types has sliding layers, and sliding_window is null."),
        (
            {"layer_types": ("full_attention",), "sliding_window": 8},
            "sliding_window is 8, and no layer of layer_types slides. Leave one of them out.",
        ),
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq is 10000.0, and no layer slides: .*or leave it out."),
        ({"norm_topk_prob": False}, "norm_topk_prob is False, and num_experts is null: .*or leave norm_topk_prob out."),
        (
            {"num_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok is 3 and num_experts 2: .*raise the other.",
        ),
        ({"num_experts": 2, "mlp_bias": True}, "experts are gated and have no bias: .*as they are."),
    ],
)
def test_config_is_refused_when_it_contradicts_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ModelConfig(**fields)


def test_layers_follow_the_pattern_when_it_is_shorter_than_the_model() -> None:
    config = ModelConfig(sliding_window=8, layer_types=("sliding_attention", "sliding_attention", "full_attention"))
    assert [config.layer_type(layer)[:4] for layer in range(7)] == ["slid", "slid", "full"] * 2 + ["slid"]


def test_all_layers_slide_when_there_is_a_window_and_no_pattern() -> None:
    assert {ModelConfig(sliding_window=8).layer_type(layer) for layer in range(6)} == {"sliding_attention"}
    assert ModelConfig().layer_type(0) == "full_attention"


def test_output_bias_follows_the_others_unless_it_is_said() -> None:
    assert ModelConfig(attention_bias=True).output_bias
    assert not ModelConfig(attention_bias=True, attention_output_bias=False).output_bias
    assert not ModelConfig().output_bias


def test_config_is_the_same_when_it_comes_back_from_plain_values() -> None:
    config = ModelConfig(
        rope_scaling=RopeScaling(rope_type="linear", factor=2.0),
        sliding_window=8,
        layer_types=("sliding_attention", "full_attention"),
    )
    assert ModelConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
    assert ModelConfig.from_json({"hidden_size": 64}) == ModelConfig(hidden_size=64)
