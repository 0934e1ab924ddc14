"""Tiny models of every family with random weights, made and saved by transformers; and SentencePiece models."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

import data_pipeline.sample

VOCABULARY = 97
LAYERS = 4
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_GEMMA = {**_SMALL, "head_dim": 16}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
_EXPERTS = {**_SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SMALL),
    "llama, tied, one key head": ("Llama", {**_SMALL, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, biases, all heads": (
        "Llama",
        {**_SMALL, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "llama 3.1": ("Llama", {**_SMALL, "rope_parameters": _LLAMA3}),
    "llama, linear": (
        "Llama",
        {**_SMALL, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama, yarn": ("Llama", {**_SMALL, "rope_parameters": _YARN}),
    "mistral": ("Mistral", {**_SMALL, "sliding_window": 7}),
    "mistral, full, wide heads": ("Mistral", {**_SMALL, "sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2", {**_SMALL, "tie_word_embeddings": True}),
    "qwen2, sliding, yarn": (
        "Qwen2",
        {
            **_SMALL,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
            "rope_parameters": {**_YARN, "beta_fast": 16.0, "attention_factor": 1.25},
        },
    ),
    "qwen3": ("Qwen3", {**_SMALL, "head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    "qwen3_moe, sliding, plain weights": (
        "Qwen3Moe",
        {
            **_EXPERTS,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "router_aux_loss_coef": 0.02,
        },
    ),
    "mixtral": ("Mixtral", {**_SMALL, "num_local_experts": 5}),
    "mixtral, sliding, tied": (
        "Mixtral",
        {
            **_SMALL,
            "num_local_experts": 4,
            "head_dim": 24,
            "hidden_act": "gelu",
            "sliding_window": 7,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "granite": (
        "Granite",
        {
            **_SMALL,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "gemma": ("Gemma", {**_GEMMA, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", {**_GEMMA, "sliding_window": 6, "query_pre_attn_scalar": 24}),
    "gemma3": (
        "Gemma3Text",
        {
            **_GEMMA,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": _GEMMA3_ROPE,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "eos_token_id": 0},
    ),
    "gpt2, untied, exact gelu": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_inner": 40,
            "n_positions": 128,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}
"""By a name of the case: the prefix of its class in transformers, and the arguments of its configuration."""

MakeTwin = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="session")
def make_twin(tmp_path_factory: pytest.TempPathFactory) -> MakeTwin:
    """Gives the model of a case in transformers, and the directory in which it was saved; each is made once."""
    transformers = pytest.importorskip("transformers")
    made: dict[str, tuple[Any, Path]] = {}

    def make(case: str, **save: Any) -> tuple[Any, Path]:
        key = f"{case} {save}"
        if key not in made:
            prefix, arguments = TWINS[case]
            heads = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
            config = getattr(transformers, f"{prefix}Config")(**arguments, attn_implementation="eager")
            torch.manual_seed(0)
            twin = getattr(transformers, heads.get(prefix, f"{prefix}ForCausalLM"))(config).eval()
            with torch.no_grad():  # at their initial values, swapped scales and lost biases would go unnoticed
                for parameter in twin.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            directory = tmp_path_factory.mktemp("twin")
            twin.save_pretrained(directory, **save)
            made[key] = (twin, directory)
        return made[key]

    return make


@pytest.fixture(params=[name for name, (prefix, _) in TWINS.items() if prefix in ("Qwen3Moe", "Mixtral")])
def experts_case(request: pytest.FixtureRequest) -> str:
    """Every case of a family with experts in turn."""
    return str(request.param)


@pytest.fixture(params=TWINS)
def case(request: pytest.FixtureRequest) -> str:
    """Every case in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def novel() -> str:
    path = Path(data_pipeline.sample.__file__).parent / "pride_and_prejudice.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def _train_bytes(texts: list[str], **options: Any) -> bytes:
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    lines = (line for text in texts for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **(defaults | options))
    return model.getvalue()


@pytest.fixture(scope="session")
def train_bytes() -> Callable[..., bytes]:
    """Trains a SentencePiece model on texts; keywords are the trainer's. Gives the content of the .model file."""
    return _train_bytes


@pytest.fixture(scope="session")
def runs_model(novel: str) -> bytes:
    """BPE full of pieces that arise in several ways: runs, and words of two letters repeated."""
    texts = ["".join("a" * n + "b" * (n % 3) for n in range(12)), "abab" * 20, "ababa" * 9, "aabaab" * 9, " " * 50]
    return _train_bytes([*texts * 5, novel[:2000]], vocab_size=420, model_type="bpe")
