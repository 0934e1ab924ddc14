"""Every config.json there and back; what is refused, by name and with the remedy; which family is taken."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_documents import GEMMA3, LLAMA, QWEN2, Document, assert_refused, refusals

from llm.config import ModelConfig, RopeScaling
from llm.errors import ExportError, HuggingFaceConfigError
from llm.hugging_face.configuration import differences, read_config, read_document, write_document

MakeTwin = Callable[..., tuple[Any, Path]]


def small(**changes: Any) -> ModelConfig:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ModelConfig(**{**shape, "intermediate_size": 56, "max_position_embeddings": 128, **changes})


def test_a_config_is_the_same_when_written_and_read_again(case: str, make_twin: MakeTwin) -> None:
    config = read_config(make_twin(case)[1]).config
    _, document = write_document(config)
    assert differences(read_document(json.loads(json.dumps(document))).config, config) == []


def test_transformers_reads_the_same_config_when_written(case: str, make_twin: MakeTwin) -> None:
    transformers = pytest.importorskip("transformers")
    twin, directory = make_twin(case)
    family, document = write_document(read_config(directory).config)
    assert family.model_type == ("llama" if case.startswith("mistral, full") else twin.config.model_type)
    theirs = transformers.AutoConfig.for_model(**document).to_dict()
    expected = twin.config.to_dict()
    not_ours = {"bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dtype", "model_type"}
    spelled_out = {"max_window_layers", "n_inner", *(["head_dim"] if expected.get("head_dim") is None else [])}
    for key in set(expected) - not_ours - spelled_out:
        assert theirs.get(key) == expected[key], key


def test_special_tokens_are_read() -> None:
    assert read_document(LLAMA).bos_token_id is None
    described = read_document(LLAMA | {"bos_token_id": 1, "eos_token_id": [2, 5]})
    assert (described.bos_token_id, described.eos_token_ids) == (1, (2, 5))


REFUSED = [
    (LLAMA, {"model_type": "mamba"}, r"model_type is 'mamba', and the families known here are llama, mistral, .*gpt2"),
    (LLAMA, {"model_type": None}, r"model_type is None, and the families known"),
    (LLAMA, {"hidden_size": "32"}, r"hidden_size is '32', and is a whole number"),
    (LLAMA, {"rms_norm_eps": "small"}, r"rms_norm_eps is 'small'"),
    (LLAMA, {"num_attention_heads": 5}, r"num_attention_heads 5 does not divide hidden_size 32"),
    (LLAMA, {"new_trick": 1}, r"new_trick = 1 is not known here for model_type llama, .* delete the key"),
    (
        LLAMA,
        {"quantization_config": {"bits": 4}},
        r"quantization_config is .* computed here as if it were absent.* dequ",
    ),
    (LLAMA, {"auto_map": {"AutoModel": "x.Y"}}, r"auto_map is .* code of its own"),
    (LLAMA, {"rope_interleaved": True}, r"rope_interleaved is True, and .* as if it were false"),
    (QWEN2, {"use_mrope": True}, r"use_mrope is True"),
    (GEMMA3, {"use_bidirectional_attention": True}, r"use_bidirectional_attention is True, and .* as if it were false"),
    (GEMMA3, {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50.0, and .* as if it were absent"),
    (
        {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2},
        {"scale_attn_by_inverse_layer_idx": True},
        r"scale_attn_by_inverse_layer_idx is True, and .* as if it were false",
    ),
]


@refusals(REFUSED)
def test_a_config_is_refused_when_it_asks_for_more(document: Document, more: Document, message: str) -> None:
    assert_refused(document, more, message)


def test_a_config_is_refused_with_its_path_when_it_is_missing_or_torn(tmp_path: Path) -> None:
    with pytest.raises(
        HuggingFaceConfigError, match=r"config\.json cannot be read \(No such file.* Give the directory"
    ):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(HuggingFaceConfigError, match=r"config\.json is not whole JSON .* Download it again"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(HuggingFaceConfigError, match=r"config\.json holds a list, not an object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "mamba"}))
    with pytest.raises(HuggingFaceConfigError, match=r"config\.json: model_type is 'mamba'"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "llama"),
        ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, "llama"),
        ({"head_dim": 10, "hidden_size": 30}, "mistral"),
        ({"sliding_window": 8}, "mistral"),
        ({"attention_bias": True, "attention_output_bias": False}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({"num_experts": 4}, "mixtral"),
        ({"num_experts": 4, "moe_intermediate_size": 24, "sliding_window": 8, "router_z_loss_coef": 0.1}, "mixtral"),
        ({"num_experts": 4, "moe_intermediate_size": 24, "sliding_window": 8, "qk_norm": True}, "qwen3_moe"),
        ({"num_experts": 4, "norm_topk_prob": False, "qk_norm": True, "attention_bias": True}, "qwen3_moe"),
        ({"residual_multiplier": 0.5}, "granite"),
        ({"sliding_window": 8, "layer_types": ("full_attention", "sliding_attention"), "qk_norm": True}, "qwen3"),
        ({"embedding_multiplier": 32**0.5, "hidden_act": "gelu_pytorch_tanh"}, "gemma"),
        (
            {
                "normalization": "layer_norm",
                "position_embedding": "learned",
                "gated_mlp": False,
                "attention_bias": True,
                "mlp_bias": True,
                "residual_dropout": 0.1,
            },
            "gpt2",
        ),
    ],
)
def test_the_first_family_that_expresses_a_model_is_taken(changes: dict[str, Any], model_type: str) -> None:
    config = small(**changes)
    family, document = write_document(config)
    assert family.model_type == model_type
    assert differences(read_document(document).config, config) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "layer_norm"}, r"the nearest, llama, has no normalization = 'layer_norm'\. Known are llama"),
        ({"qk_norm": True, "mlp_bias": True}, r"the nearest, llama, has no qk_norm = True\. Known are"),
        ({"num_experts": 4, "norm_topk_prob": False}, r"the nearest, mixtral, has no norm_topk_prob = False\. "),
        ({"num_experts": 4, "attention_bias": True}, r"the nearest, llama, has no num_experts = 4\. Known"),
    ],
)
def test_a_model_is_refused_when_no_family_expresses_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_document(small(**changes))


def test_older_readers_find_the_rotary_base_under_their_own_key() -> None:
    scaling = RopeScaling(rope_type="llama3", factor=8, original_max_position_embeddings=32)
    _, document = write_document(small(rope_theta=5e5, rope_scaling=scaling))
    assert document["rope_theta"] == 5e5
    assert document["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }


def test_differences_are_those_that_change_what_is_computed() -> None:
    one = small(layer_types=("sliding_attention",), sliding_window=8, num_key_value_heads=4, attention="eager")
    other = small(sliding_window=8, head_dim=8, initializer_range=0.1)
    assert differences(one, other) == []
    assert differences(one, dataclasses.replace(other, rope_theta=2.0, rms_norm_eps=1e-6)) == [
        "rms_norm_eps",
        "rope_local_base_freq",
    ]


def test_differences_are_in_the_width_that_is_used_when_there_are_experts() -> None:
    one = small(num_experts=4, moe_intermediate_size=24, router_aux_loss_coef=0.5)
    assert differences(one, small(num_experts=4, intermediate_size=24)) == []
    assert differences(one, small(num_experts=4)) == ["intermediate_size"]


def test_reading_a_config_loads_no_torch() -> None:
    code = "import sys, llm.hugging_face.configuration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
