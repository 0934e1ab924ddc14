"""How many parameters and floating-point operations a model has. Imports no torch: `plan` needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm.config import ModelConfig
from llm.errors import ModelConfigError
from llm.expert_shapes import expert_parameter_shapes

PEAK_BF16_FLOPS: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835.5e12),
    ("H200 NVL", 835.5e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)
"""Dense bf16 FLOP/s by a part of the device name, from NVIDIA's data sheets; the first match counts."""


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Distinct parameters by the part of the model that owns them."""

    embedding: int
    """Token embedding, V * D, and the rows of learned positions."""
    attention: int
    """Query, key, value and output projections of all layers, with biases."""
    feed_forward: int
    """Feed-forward projections of all layers, with biases."""
    norms: int
    """Scales and biases of all norms."""
    output: int
    """Output projection, V * D; 0 when it is the embedding itself."""
    total: int
    """Sum of the parts: PaLM's N, with tied embeddings counted once."""


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of forward and backward for one token."""

    full: float
    """Attention counted over the whole T x T square, as in PaLM."""
    causal: float
    """Attention counted over the causal half that is really needed."""


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

    With `tie_word_embeddings` there is no `lm_head.weight`.

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
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def parameter_parts(name: str, shape: Sequence[int], config: ModelConfig) -> dict[str, int]:
    """The matrices, or biases, that a parameter holds one below the other: rows by the name each has on its own.

    Queries, keys and values are one parameter, since one product makes them all, and so are gate and up projections,
    and the experts of a layer; they begin, are updated by Muon, and are exchanged with others as the matrices they are.
    The dimensions of a parameter before its last are taken as one.
    """
    module, _, kind = name.rpartition(".")
    K, F = config.head_size, config.intermediate_size
    if module.endswith("self_attn.qkv_proj"):
        heads = {"q": config.num_attention_heads, "k": config.key_value_heads, "v": config.key_value_heads}
        return {f"{module.removesuffix('qkv_proj')}{part}_proj.{kind}": n * K for part, n in heads.items()}
    if module.endswith("mlp.gate_up_proj"):
        return {f"{module.removesuffix('gate_up_proj')}{part}_proj.{kind}": F for part in ("gate", "up")}
    if module.endswith("mlp.experts"):
        experts, rows = range(shape[0]), shape[1]
        if kind == "down_proj":
            return {f"{module}.{expert}.down_proj.weight": rows for expert in experts}
        return {f"{module}.{expert}.{part}_proj.weight": rows // 2 for expert in experts for part in ("gate", "up")}
    return {name: shape[0]}


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Number of distinct parameters, by part.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    parts = dict.fromkeys(("embedding", "attention", "feed_forward", "norms", "output"), 0)
    for name, shape in parameter_shapes(config).items():
        parts[_part_of(name)] += math.prod(shape)
    return ParameterCount(**parts, total=sum(parts.values()))


def flops_per_token(config: ModelConfig, seq_len: int) -> FlopCount:
    """Floating-point operations of one training token: 6 N + 12 L d T, and 6 N + 6 L d T for the causal half.

    N is the number of distinct parameters (a tied embedding once), L the layers, d = H * K the width of all
    query heads together, T the sequence length. From PaLM, appendix B (arXiv:2204.02311). Operations done
    twice to save memory are not counted.

    Args:
        config: Shape of the model.
        seq_len: Sequence length T, in tokens.

    Returns:
        Operations per token of forward and backward together.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    matrices = 6.0 * count_parameters(config).total
    width = config.num_attention_heads * config.head_size
    attention = 12.0 * config.num_hidden_layers * width * seq_len
    return FlopCount(full=matrices + attention, causal=matrices + attention / 2)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device, or None where it is not known.

    A slice of a device (MIG) has no entry: its name is that of the whole device, its speed is not.

    Args:
        device_name: As torch.cuda.get_device_name gives it.
    """
    if "MIG" in device_name:
        return None
    return next((flops for part, flops in PEAK_BF16_FLOPS if part in device_name), None)


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, peak_flops: float | None) -> float | None:
    """MFU = tokens/s * FLOP/token / peak FLOP/s, a fraction (PaLM, appendix B, arXiv:2204.02311).

    Args:
        tokens_per_second: Of all devices together, or of one.
        flops_per_token: From `flops_per_token`, full or causal.
        peak_flops: FLOP/s of as many devices as the tokens were counted over; None where unknown.

    Returns:
        The fraction, or None where the peak is unknown or the result is above 1 and so cannot be true.
    """
    if peak_flops is None:
        return None
    utilization = tokens_per_second * flops_per_token / peak_flops
    return utilization if utilization <= 1.0 else None


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
        **_feed_forward_shapes(config),
        **(_norm_shapes("mlp_output_norm", config) if config.sandwich_norm else {}),
    }


def _feed_forward_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, F = config.hidden_size, config.intermediate_size
    if config.num_experts is not None:
        shapes = expert_parameter_shapes(D, config.expert_size, config.num_experts)
        return {f"mlp.{name}": shape for name, shape in shapes.items()}
    up = ("mlp.gate_up_proj", 2 * F) if config.gated_mlp else ("mlp.up_proj", F)
    return {
        **_linear_shapes(*up, D, config.mlp_bias),
        **_linear_shapes("mlp.down_proj", D, F, config.mlp_bias),
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
    return "output" if name == "lm_head.weight" else "embedding"
