"""The parts of a decoder block: Llama's (arXiv:2302.13971), and what its relatives have besides.

Constructors leave parameters uninitialised: their values come from `llm.initialization` or from a checkpoint.
Legend: B batch, T sequence, D model, H query heads, G key/value heads, K head size, F hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.attention import AttentionMask, Backend, ScoreRule
from llm.dropout import Dropout, drop
from llm.expert_backends import resolve_experts
from llm.experts import MixtureOfExperts, RouterSums
from llm.fused import ACTIVATIONS, gated, rms_norm, rotated_heads
from llm.kv_cache import LayerCache
from llm.model_config import ModelConfig
from llm.rotary import Rotary, rotate


class Linear(nn.Module):
    """A matrix, and a bias where asked for. Unlike torch's own it spends no time on values that are overwritten."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (..., in_features) -> (..., out_features)."""
        product = F.linear(x, self.weight)
        # Not by F.linear: DeepSpeed's, at ZeRO 3, adds the bias in place, to a product that selective activation
        # checkpointing keeps and would add it to once more.
        # In the product's dtype: under autocast the bias is wider, and all that follows would be too.
        return product if self.bias is None else product + self.bias.to(product.dtype)


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
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension with scale and bias (arXiv:1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (..., size) -> (..., size), same dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """A norm of the residual stream, of the kind that the configuration names."""
    kind = RMSNorm if config.normalization == "rms_norm" else LayerNorm
    return kind(config.hidden_size, config.rms_norm_eps)


ATTENTION_WEIGHTS, ATTENTION_OUTPUT, FEED_FORWARD_OUTPUT = range(3)
"""The places of a layer where elements are dropped."""


class Surroundings(NamedTuple):
    """What the layers of one type share during a forward pass.

    A tuple, not a class of its own: wrappers that walk over a module's inputs know what to do with it.
    """

    rotary: Rotary | None
    """None where positions are not rotated."""
    mask: AttentionMask
    dropout_keys_B: Tensor | None = None  # noqa: N815
    """Key of each row in this layer; None where nothing is dropped."""
    token_weights_BT: Tensor | None = None  # noqa: N815
    """What each token counts for the router's losses; None means 1."""


class Attention(nn.Module):
    """Grouped-query self-attention (arXiv:2305.13245); one product makes queries, keys and values.

    The rows of `qkv_proj` are those of Hugging Face's q_proj, k_proj and v_proj, one below the other.
    """

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        D, H, G, K = config.hidden_size, config.num_attention_heads, config.key_value_heads, config.head_size
        self.heads = (H, G, K)
        self.attend = backend.attend
        self.dropped = config.attention_dropout
        self.scores = ScoreRule(config.score_scale, config.attn_logit_softcapping, None)
        self.qkv_proj = Linear(D, (H + 2 * G) * K, bias=config.attention_bias)
        self.o_proj = Linear(H * K, D, bias=config.output_bias)
        self.q_norm = RMSNorm(K, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(K, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, around: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D). With a cache, the new keys and values are added to it."""
        H, G, K = self.heads
        qkv_BTNK = self.qkv_proj(x_BTD).unflatten(-1, (H + 2 * G, K))
        if self.q_norm is None and around.rotary is not None:
            q_BTHK, k_BTGK, v_BTGK = rotated_heads(qkv_BTNK, around.rotary, H, G)
        else:
            q_BTHK, k_BTGK, v_BTGK = qkv_BTNK.split((H, G, G), dim=2)
            if self.q_norm is not None and self.k_norm is not None:
                q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
            if around.rotary is not None:
                q_BTHK, k_BTGK = rotate(q_BTHK, around.rotary), rotate(k_BTGK, around.rotary)
        if cache is not None:
            k_BTGK, v_BTGK = cache.append(k_BTGK, v_BTGK)
        scores = self.scores
        if self.dropped and around.dropout_keys_B is not None:
            scores = scores._replace(dropout=Dropout(around.dropout_keys_B, ATTENTION_WEIGHTS, self.dropped))
        mixed_BTHK = self.attend(q_BTHK, k_BTGK, v_BTGK, around.mask, scores)
        projected_BTD: Tensor = self.o_proj(mixed_BTHK.flatten(2))
        return projected_BTD


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (arXiv:2002.05202); one product makes gate and up.

    The rows of `gate_up_proj` are those of Hugging Face's gate_proj and up_proj, one below the other.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.hidden_act
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        down_BTD: Tensor = self.down_proj(gated(self.gate_up_proj(x_BTD), self.activation))
        return down_BTD


class PlainFeedForward(nn.Module):
    """down(act(up(x))), as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        down_BTD: Tensor = self.down_proj(self.activation(self.up_proj(x_BTD)))
        return down_BTD


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """The feed-forward that the configuration describes."""
    if config.num_experts is None:
        return FeedForward(config) if config.gated_mlp else PlainFeedForward(config)
    return MixtureOfExperts(
        hidden_size=config.hidden_size,
        expert_size=config.expert_size,
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        normalize_weights=config.norm_topk_prob,
        activation=config.hidden_act,
        backend=resolve_experts(config.experts).name,
    )


class Block(nn.Module):
    """One decoder block: each half normalises its input and adds its output to the residual stream."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.dropped = config.residual_dropout
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, backend)
        self.attention_output_norm = make_norm(config) if config.sandwich_norm else None
        self.post_attention_layernorm = make_norm(config)
        self.mlp = make_feed_forward(config)
        self.mlp_output_norm = make_norm(config) if config.sandwich_norm else None

    def forward(
        self, x_BTD: Tensor, around: Surroundings, cache: LayerCache | None = None
    ) -> tuple[Tensor, RouterSums | None]:
        """Shape: (B, T, D) -> (B, T, D), and the sums of the router where there are experts."""
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), around, cache)
        x_BTD = self._added(x_BTD, mixed_BTD, self.attention_output_norm, around, ATTENTION_OUTPUT)
        normed_BTD, sums = self.post_attention_layernorm(x_BTD), None
        if isinstance(self.mlp, MixtureOfExperts):
            fed_BTD, sums = self.mlp(normed_BTD, around.token_weights_BT)
        else:
            fed_BTD = self.mlp(normed_BTD)
        return self._added(x_BTD, fed_BTD, self.mlp_output_norm, around, FEED_FORWARD_OUTPUT), sums

    def _added(
        self, x_BTD: Tensor, half_BTD: Tensor, norm: nn.Module | None, around: Surroundings, place: int
    ) -> Tensor:
        if norm is not None:
            half_BTD = norm(half_BTD)
        if self.dropped and around.dropout_keys_B is not None:
            half_BTD = drop(half_BTD, Dropout(around.dropout_keys_B, place, self.dropped))
        if self.multiplier != 1.0:
            half_BTD = half_BTD * self.multiplier
        return x_BTD + half_BTD
