"""Which parameters a model has, and how many. Imports no torch: `plan` needs it.

Operations are counted in `llm.flops`, bytes in `llm.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm.config import ModelConfig
from llm.errors import ModelConfigError

_EXPERTS = ".experts."
HEAD = "score."
"""What the names of the parameters of another task's head begin with."""


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Distinct parameters by the part of the model that owns them."""

    embedding: int
    """Token embedding, V * D, and the rows of learned positions."""
    attention: int
    """Query, key, value and output projections of all layers, with biases."""
    feed_forward: int
    """Feed-forward projections of all layers, with biases; of experts all of them, and their routers."""
    norms: int
    """Scales and biases of all norms."""
    output: int
    """Output projection, V * D, or the head of another task; 0 when it is the embedding itself."""
    total: int
    """Sum of the parts, with tied embeddings counted once."""
    active: int
    """Those that one token meets: all but the experts that it does not use. PaLM's N."""


def vocabulary_size(config: ModelConfig) -> int:
    """The vocabulary size V of a configuration in which it is already known.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    if config.vocab_size is None:
        raise ModelConfigError(
            "model.vocab_size is null: the size of the embedding is not known yet. "
            "Set it, or fill it in from the tokenizer of the dataset first."
        )
    return config.vocab_size


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every distinct parameter by its name, in the order in which the module registers them.

    With `tie_word_embeddings` there is no `lm_head.weight`; a head of another task is `score`, in its place.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    V, D = vocabulary_size(config), config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    if config.position_embedding == "learned":
        assert config.max_position_embeddings is not None
        shapes["model.embed_positions.weight"] = (config.max_position_embeddings, D)
    for layer in range(config.num_hidden_layers):
        for name, shape in _block_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes.update(_norm_shapes("model.norm", config))
    if config.head is not None:
        shapes.update(_linear_shapes(HEAD.rstrip("."), config.head.outputs, D, config.head.bias))
    elif not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def output_size(config: ModelConfig) -> int:
    """Outputs of a position: the vocabulary size V, or what the head of another task has.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    return vocabulary_size(config) if config.head is None else config.head.outputs


def parameter_parts(name: str, shape: Sequence[int], config: ModelConfig) -> dict[str, int]:
    """The matrices, or biases, that a parameter holds one below the other: rows by the name each has on its own.

    Queries, keys and values are one parameter, since one product makes them all, and so are gate and up projections,
    and the experts of a layer, whose dimensions before the last count as rows; they begin, are updated by Muon, and are
    exchanged with others as the matrices they are.
    """
    module, _, kind = name.rpartition(".")
    K, F = config.head_size, config.intermediate_size
    if module.endswith("self_attn.qkv_proj"):
        heads = {"q": config.num_attention_heads, "k": config.key_value_heads, "v": config.key_value_heads}
        return {f"{module.removesuffix('qkv_proj')}{part}_proj.{kind}": n * K for part, n in heads.items()}
    if module.endswith("mlp.gate_up_proj"):
        return {f"{module.removesuffix('gate_up_proj')}{part}_proj.{kind}": F for part in ("gate", "up")}
    if module.endswith("mlp.experts"):
        rows = {"down_proj": {"down": config.hidden_size}, "gate_up_proj": dict.fromkeys(("gate", "up"), shape[1] // 2)}
        return {
            f"{module}.{expert}.{part}_proj.weight": height
            for expert in range(shape[0])
            for part, height in rows[kind].items()
        }
    return {name: shape[0]}


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Number of distinct parameters, by part.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    parts = dict.fromkeys(("embedding", "attention", "feed_forward", "norms", "output"), 0)
    unused = 0
    for name, shape in parameter_shapes(config).items():
        size = math.prod(shape)
        parts[_part_of(name)] += size
        if _EXPERTS in name:
            unused += size // shape[0] * (shape[0] - config.num_experts_per_tok)
    total = sum(parts.values())
    return ParameterCount(**parts, total=total, active=total - unused)


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, K = config.hidden_size, config.head_size
    queries, keys = config.num_attention_heads * K, config.key_value_heads * K
    head_norms: dict[str, tuple[int, ...]] = {
        "self_attn.q_norm.weight": (K,),
        "self_attn.k_norm.weight": (K,),
    }
    return {
        **_norm_shapes("input_layernorm", config),
        **_linear_shapes("self_attn.qkv_proj", queries + 2 * keys, D, config.attention_bias),
        **_linear_shapes("self_attn.o_proj", D, queries, config.output_bias),
        **(head_norms if config.qk_norm else {}),
        **(_norm_shapes("attention_output_norm", config) if config.sandwich_norm else {}),
        **_norm_shapes("post_attention_layernorm", config),
        **(_feed_forward_shapes(config) if config.num_experts is None else _expert_shapes(config)),
        **(_norm_shapes("mlp_output_norm", config) if config.sandwich_norm else {}),
    }


def _feed_forward_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, F, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    up = ("mlp.gate_up_proj", 2 * F) if config.gated_mlp else ("mlp.up_proj", F)
    return {**_linear_shapes(*up, D, bias), **_linear_shapes("mlp.down_proj", D, F, bias)}


def _expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Router and stacked experts, named and shaped as in transformers 5's Qwen3-MoE and Mixtral."""
    assert config.num_experts is not None
    D, F, E = config.hidden_size, config.expert_size, config.num_experts
    return {
        "mlp.gate.weight": (E, D),
        f"mlp{_EXPERTS}gate_up_proj": (E, 2 * F, D),
        f"mlp{_EXPERTS}down_proj": (E, D, F),
    }


def _linear_shapes(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _norm_shapes(name: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    kinds = ("weight",) if config.normalization == "rms_norm" else ("weight", "bias")
    return {f"{name}.{kind}": (config.hidden_size,) for kind in kinds}


def is_norm(name: str) -> bool:
    """Whether a parameter is a norm's scale or bias."""
    return name.rpartition(".")[0].endswith("norm")


def _part_of(name: str) -> str:
    if is_norm(name):
        return "norms"
    if ".self_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "feed_forward"
    return "output" if name.startswith(("lm_head.", HEAD)) else "embedding"
