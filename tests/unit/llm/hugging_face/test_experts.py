"""Keys of config.json about experts, under each of their names; and what of them is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm.config import ModelConfig
from llm.errors import HuggingFaceConfigError
from llm.hugging_face.configuration import differences, read_document, write_document

_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
QWEN = _SHAPE | {"model_type": "qwen3_moe", "num_experts": 16}
MIXTRAL = _SHAPE | {"model_type": "mixtral", "num_local_experts": 8}


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


READ = [
    (
        "qwen",
        QWEN,
        {"num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False},
    ),
    (
        "qwen, as saved",
        without(QWEN, "num_experts") | {"num_local_experts": 6, "num_experts_per_tok": 2},
        {"num_experts": 6},
    ),
    ("qwen, both names", QWEN | {"num_local_experts": 16}, {"num_experts": 16}),
    ("qwen, window off", QWEN | {"sliding_window": 8, "max_window_layers": 2}, {"sliding_window": None}),
    (
        "qwen, window on",
        QWEN | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
        {"sliding_window": 8, "layer_types": None},
    ),
    ("qwen, lists spelled out", QWEN | {"mlp_only_layers": [], "decoder_sparse_step": 1}, {"qk_norm": True}),
    (
        "mixtral, bare",
        MIXTRAL,
        {"norm_topk_prob": True, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None},
    ),
    ("mixtral, width", MIXTRAL, {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": None}),
    ("mixtral, other name", without(MIXTRAL, "num_local_experts") | {"num_experts": 4}, {"num_experts": 4}),
    (
        "mixtral, losses",
        MIXTRAL | {"router_aux_loss_coef": 0.02},
        {"router_aux_loss_coef": 0.02, "router_z_loss_coef": 0.0},
    ),
]


@pytest.mark.parametrize(("document", "expected"), [c[1:] for c in READ], ids=[c[0] for c in READ])
def test_keys_are_read(document: dict[str, Any], expected: dict[str, Any]) -> None:
    config = read_document(document).config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("document", [c[1] for c in READ], ids=[c[0] for c in READ])
def test_keys_are_read_as_transformers_reads_them(document: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    newer = transformers.AutoConfig.for_model(**json.loads(json.dumps(document))).to_dict()
    config = read_document(document).config
    assert differences(read_document(newer).config, config) == []
    assert config.router_aux_loss_coef == newer["router_aux_loss_coef"]


REFUSED = [
    (
        QWEN | {"decoder_sparse_step": 2},
        r"decoder_sparse_step is 2, which gives some layers a feed-forward without .*Take a model in which it is 1\.",
    ),
    (
        QWEN | {"mlp_only_layers": [0, 3]},
        r"mlp_only_layers is \[0, 3\], which gives some layers .*Take a model in which it is \[\]\.",
    ),
    (
        QWEN | {"num_local_experts": 4},
        r"num_experts is 16 and num_local_experts 4, two names of one number: .*Delete the wrong one",
    ),
    (without(QWEN, "num_experts"), r"num_experts is missing, and the model has no shape without it\. Take the file"),
    (without(MIXTRAL, "num_local_experts"), r"num_local_experts is missing, and the model has no shape"),
    (QWEN | {"num_experts": "16"}, r"num_experts is '16'"),
    (QWEN | {"num_experts": 4}, r"num_experts_per_tok is 8 and num_experts 4: a token cannot use more"),
    (
        QWEN | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
        r"max_window_layers is 2 and sliding_window 8: .*which was meant is unknown\. Set max_window_layers to 0",
    ),
    (QWEN | {"shared_expert_intermediate_size": 24}, r"shared_expert_intermediate_size = 24 is not known here"),
    (
        MIXTRAL | {"router_jitter_noise": 0.1},
        r"router_jitter_noise is 0\.1, and .* as if it were 0\.0: .*noise of training alone: set it to 0 in a copy",
    ),
]


@pytest.mark.parametrize(("document", "message"), REFUSED, ids=[c[1][:24] for c in REFUSED])
def test_a_config_is_refused_when_it_asks_for_more(document: dict[str, Any], message: str) -> None:
    with pytest.raises(HuggingFaceConfigError, match=message):
        read_document(document)


def written(**changes: Any) -> dict[str, Any]:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = ModelConfig(**{**shape, "num_experts": 4, "max_position_embeddings": 128, **changes})
    return write_document(config)[1]


def test_the_number_of_experts_is_written_under_the_name_that_older_readers_know() -> None:
    mixtral, qwen = written(), written(qk_norm=True)
    assert (mixtral["num_local_experts"], qwen["num_experts"]) == (4, 4)
    assert "num_experts" not in mixtral
    assert "num_local_experts" not in qwen


def test_the_width_of_an_expert_is_written_as_that_of_the_feed_forward_when_there_is_no_other_key() -> None:
    mixtral, qwen = written(moe_intermediate_size=24), written(moe_intermediate_size=24, qk_norm=True)
    assert mixtral["intermediate_size"] == 24
    assert "moe_intermediate_size" not in mixtral
    assert (qwen["intermediate_size"], qwen["moe_intermediate_size"]) == (704, 24)


def test_all_layers_slide_by_either_rule_when_written() -> None:
    sliding, full = written(qk_norm=True, sliding_window=8), written(qk_norm=True)
    keys = ("use_sliding_window", "sliding_window", "max_window_layers")
    assert [sliding[key] for key in keys] == [True, 8, 0]
    assert [full[key] for key in keys] == [False, None, 4]
