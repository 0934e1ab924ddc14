"""The parts of a Llama decoder block (arXiv:2302.13971), with the parameter names of Hugging Face's Llama.

Constructors leave parameters uninitialised: their values come from `llm.initialization` or from a checkpoint.
Legend: B batch, T sequence, D model, H query heads, G key/value heads, K head size, F hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.attention import Attend, AttentionMask, ScoreRule
from llm.config import ModelConfig
from llm.kv_cache import LayerCache


class Linear(nn.Module):
    """A matrix without bias. Unlike torch's own it spends no time on values that will be overwritten."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight)


class Embedding(nn.Module):
    """One row of `weight` for each token; uninitialised, as in `Linear`."""

    def __init__(self, num_embeddings: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, size))

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape: (...) integers -> (..., size)."""
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (arXiv:1910.07467), reduced in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (..., size) -> (..., size), same dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary(NamedTuple):
    """Cosine and sine of every position's angles, in fp32 whatever the dtype of the model."""

    cos: Tensor
    """Shape: (T, 1, K / 2)."""
    sin: Tensor
    """Shape: (T, 1, K / 2)."""


def rotary_tables(start: int, length: int, head_size: int, theta: float, device: torch.device) -> Rotary:
    """Angles of `length` positions from `start` on (RoPE, arXiv:2104.09864, in Llama's half-rotation form).

    Made anew in each forward pass, a few thousand numbers: a buffer would lose its precision when someone
    casts the module to bf16, and would need a largest length. Documents in a sequence do not restart the
    positions: scores depend on differences only, so a document's attention is the same wherever it stands.
    """
    pairs = torch.arange(0, head_size, 2, dtype=torch.float32, device=device)
    frequencies_K = 1.0 / theta ** (pairs / head_size)
    positions_T = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles_T1K = positions_T[:, None, None] * frequencies_K
    return Rotary(angles_T1K.cos(), angles_T1K.sin())


def rotate(x_BTHK: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (i, i + K/2) of each head by their position's angle, computed in fp32; dtype is kept."""
    left_BTHK, right_BTHK = x_BTHK.chunk(2, dim=-1)
    cos_T1K, sin_T1K = rotary
    turned_left = left_BTHK * cos_T1K - right_BTHK * sin_T1K
    turned_right = right_BTHK * cos_T1K + left_BTHK * sin_T1K
    return torch.cat((turned_left, turned_right), dim=-1).to(x_BTHK.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, optionally with normalised queries and keys.

    Query-key normalisation is per head and before the rotation, as in Qwen3 (arXiv:2505.09388).
    """

    def __init__(self, config: ModelConfig, attend: Attend) -> None:
        super().__init__()
        D, H, G, K = config.hidden_size, config.num_attention_heads, config.key_value_heads, config.head_size
        self.head_size = K
        self.attend = attend
        self.q_proj = Linear(D, H * K)
        self.k_proj = Linear(D, G * K)
        self.v_proj = Linear(D, G * K)
        self.o_proj = Linear(H * K, D)
        self.q_norm = RMSNorm(K, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(K, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, rotary: Rotary, mask: AttentionMask, cache: LayerCache | None = None) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D). With a cache, the new keys and values are added to it."""
        heads = (-1, self.head_size)
        q_BTHK: Tensor = self.q_proj(x_BTD).unflatten(-1, heads)
        k_BTGK: Tensor = self.k_proj(x_BTD).unflatten(-1, heads)
        v_BTGK: Tensor = self.v_proj(x_BTD).unflatten(-1, heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, rotary), rotate(k_BTGK, rotary)
        if cache is not None:
            k_BTGK, v_BTGK = cache.append(k_BTGK, v_BTGK)
        rule = ScoreRule(scale=self.head_size**-0.5, softcap=None, dropout=0.0)
        mixed_BTHK = self.attend(q_BTHK, k_BTGK, v_BTGK, mask, rule)
        projected_BTD: Tensor = self.o_proj(mixed_BTHK.flatten(2))
        return projected_BTD


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        down_BTD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return down_BTD


class Block(nn.Module):
    """One decoder block: each half normalises its input and adds its output to the residual stream."""

    def __init__(self, config: ModelConfig, attend: Attend) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, attend)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotary: Rotary, mask: AttentionMask, cache: LayerCache | None = None) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask, cache)
        output_BTD: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return output_BTD
