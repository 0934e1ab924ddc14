"""Older spellings of activations, scales and windows, and what of them is refused."""

from __future__ import annotations

import pytest
from config_documents import (
    GEMMA3,
    LLAMA,
    QWEN2,
    Document,
    assert_read,
    assert_read_as_by_transformers,
    assert_refused,
    refusals,
)

OLDER = [
    ("no window", QWEN2, {"sliding_window": 8, "use_sliding_window": False}, {"sliding_window": None}),
    (
        "window above",
        QWEN2,
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
        {"sliding_window": 8, "layer_types": ("full_attention",) * 3 + ("sliding_attention",)},
    ),
    (
        "window nowhere",
        QWEN2,
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4},
        {"sliding_window": None, "layer_types": None},
    ),
    (
        "gemma 2",
        GEMMA3 | {"model_type": "gemma2"},
        {"sliding_window": 8},
        {"sliding_window": 8, "layer_types": ("sliding_attention", "full_attention")},
    ),
    (
        "gemma 3",
        GEMMA3,
        {"sliding_window": 8, "sliding_window_pattern": 2, "rope_theta": 1e5, "rope_local_base_freq": 1e3},
        {
            "sliding_window": 8,
            "layer_types": ("sliding_attention", "full_attention"),
            "rope_theta": 1e5,
            "rope_local_base_freq": 1e3,
        },
    ),
    (
        "gemma 1",
        GEMMA3 | {"model_type": "gemma", "num_key_value_heads": 2},
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
]


@pytest.mark.parametrize(("document", "older", "expected"), [c[1:] for c in OLDER], ids=[c[0] for c in OLDER])
def test_older_keys_are_read(document: Document, older: Document, expected: Document) -> None:
    assert_read(document, older, expected)


@pytest.mark.parametrize(("document", "older"), [c[1:3] for c in OLDER], ids=[c[0] for c in OLDER])
def test_older_keys_are_read_as_transformers_reads_them(document: Document, older: Document) -> None:
    assert_read_as_by_transformers(document, older)


REFUSED = [
    (LLAMA, {"hidden_size": None}, r"hidden_size is missing, and the model has no shape without it"),
    (LLAMA, {"hidden_act": "relu2"}, r"hidden_act is 'relu2', and the feed-forward here knows silu, .*Take a model"),
    (LLAMA | {"model_type": "mistral"}, {"layer_types": ["full_attention"] * 4}, r"layer_types is .* as if .* absent"),
    (QWEN2, {"layer_types": ["full_attention"]}, r"layer_types is \['full_attention'\], and num_hidden_layers 4"),
    (QWEN2, {"layer_types": ["linear_attention"] * 4}, r"each layer is one of full_attention or sliding_attention"),
    (GEMMA3, {"query_pre_attn_scalar": 0}, r"query_pre_attn_scalar is 0: scores are divided by its root"),
    (GEMMA3, {"sliding_window_pattern": 0}, r"sliding_window_pattern is 0, and at least 1"),
]


@refusals(REFUSED)
def test_a_config_is_refused_when_it_asks_for_more(document: Document, more: Document, message: str) -> None:
    assert_refused(document, more, message)
