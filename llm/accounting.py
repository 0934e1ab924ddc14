"""How many parameters and floating-point operations a model has. Imports no torch: `plan` needs it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm.config import ModelConfig
from llm.errors import ModelConfigError

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
    """Token embedding, V * D."""
    attention: int
    """Query, key, value and output projections of all layers."""
    feed_forward: int
    """Gate, up and down projections of all layers."""
    norms: int
    """All RMSNorm scales."""
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

    The names are those of Hugging Face's Llama. With `tie_word_embeddings` there is no `lm_head.weight`; with
    `qk_norm` every layer also has Qwen3's `self_attn.q_norm.weight` and `self_attn.k_norm.weight`.

    Raises:
        ModelConfigError: vocab_size is still null.
    """
    V, D = vocabulary_size(config), config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(config.num_hidden_layers):
        for name, shape in _block_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    return shapes


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
    D, F, K = config.hidden_size, config.intermediate_size, config.head_size
    queries, keys = config.num_attention_heads * K, config.key_value_heads * K
    head_norms: dict[str, tuple[int, ...]] = {
        "self_attn.q_norm.weight": (K,),
        "self_attn.k_norm.weight": (K,),
    }
    return {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (queries, D),
        "self_attn.k_proj.weight": (keys, D),
        "self_attn.v_proj.weight": (keys, D),
        "self_attn.o_proj.weight": (D, queries),
        **(head_norms if config.qk_norm else {}),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }


def _part_of(name: str) -> str:
    if name.endswith("norm.weight"):
        return "norms"
    if ".self_attn." in name:
        return "attention"
    if ".mlp." in name:
        return "feed_forward"
    return "output" if name == "lm_head.weight" else "embedding"
