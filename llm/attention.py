"""Attention backends of one signature, chosen by name: a readable reference and torch's fused kernels.

Legend: B batch, T query positions, S key positions, H query heads, G key/value heads, R = H / G query heads
per key/value head, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.errors import AttentionBackendError


class AttentionMask(NamedTuple):
    """Which keys each query sees. Built once per forward pass and shared by all layers.

    A tuple, not a class of its own: wrappers that walk over a module's inputs know what to do with it.
    """

    is_causal: bool
    """The plain causal triangle over T = S positions, which kernels know without being shown it."""
    bias: Tensor | None
    """Added to the scores: 0 where a query sees a key, -inf elsewhere. Shape: (B or 1, 1, T, S).

    None while `is_causal` is False means that every query sees every key.
    """


Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask], Tensor]
"""attend(q_BTHK, k_BSGK, v_BSGK, mask) -> BTHK in the dtype of q; scores are scaled by 1 / sqrt(K)."""


class ResolvedAttention(NamedTuple):
    """The backend that will run, and why."""

    name: str
    reason: str


def causal_mask(query_length: int, key_length: int, dtype: torch.dtype, device: torch.device) -> AttentionMask:
    """Mask of queries that are the last `query_length` of `key_length` positions; the rest sits in a cache.

    Args:
        query_length: T, at least 1.
        key_length: S, at least T.
        dtype: Of the bias, where one is needed: that of the queries.
        device: Of the bias.
    """
    if query_length == key_length:
        return AttentionMask(is_causal=True, bias=None)
    if query_length == 1:
        return AttentionMask(is_causal=False, bias=None)
    visible_TS = torch.ones(query_length, key_length, dtype=torch.bool, device=device)
    visible_TS = visible_TS.tril(diagonal=key_length - query_length)
    return AttentionMask(is_causal=False, bias=_bias(visible_TS[None], dtype))


def document_mask(document_ids_BT: Tensor, dtype: torch.dtype) -> AttentionMask:
    """Causal mask in which a query sees only keys of its own document.

    Args:
        document_ids_BT: Equal integers for tokens of one document. Every query sees itself, padding included,
            so no row is empty.
        dtype: Of the bias: that of the queries.
    """
    length = document_ids_BT.shape[1]
    causal_TS = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
    same_BTS = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return AttentionMask(is_causal=False, bias=_bias(same_BTS & causal_TS, dtype))


def eager_attention(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask) -> Tensor:
    """The obvious attention, in fp32: scores, mask, softmax, weighted mean (arXiv:1706.03762, eq. 1).

    Query head h reads key/value head h // R, as in grouped-query attention (arXiv:2305.13245).
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if mask.is_causal:
        hidden_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTHK.device).triu(diagonal=1)
        mask = AttentionMask(is_causal=False, bias=_bias(~hidden_TS[None], torch.float32))
    q_BTGRK = q_BTHK.float().reshape(B, T, G, H // G, K)
    scores_BGRTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK.float()) * K**-0.5
    if mask.bias is not None:
        scores_BGRTS = scores_BGRTS + mask.bias[:, :, None].float()
    weights_BGRTS = scores_BGRTS.softmax(dim=-1)
    mixed_BTGRK = torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK.float())
    return mixed_BTGRK.reshape(B, T, H, K).to(q_BTHK.dtype)


def sdpa_attention(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask) -> Tensor:
    """torch's scaled_dot_product_attention; key/value heads are shared by the kernel, never copied out."""
    bias_B1TS = mask.bias
    if bias_B1TS is not None:
        # Under autocast the queries are narrower than the residual stream for which the bias was made.
        bias_B1TS = bias_B1TS.to(q_BTHK.dtype)
    mixed_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=bias_B1TS,
        is_causal=mask.is_causal,
        enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
    )
    return mixed_BHTK.transpose(1, 2)


BACKENDS: dict[str, Attend] = {"eager": eager_attention, "sdpa": sdpa_attention}


def resolve_attention(name: str) -> ResolvedAttention:
    """Turn a configured name into the backend that will run, with the reason for the log.

    Raises:
        AttentionBackendError: No backend has that name.
    """
    if name == "auto":
        return ResolvedAttention("sdpa", "auto: torch's fused kernels run on every device and need no extra package")
    attention_backend(name)
    return ResolvedAttention(name, "asked for by name")


def attention_backend(name: str) -> Attend:
    """The backend of exactly that name.

    Raises:
        AttentionBackendError: No backend has that name; `auto` is not one.
    """
    if name == "auto":
        raise AttentionBackendError(
            "attention backend 'auto' reached the model: it must be resolved once and logged before. "
            "Pass resolve_attention('auto').name."
        )
    if name not in BACKENDS:
        known = ", ".join(["auto", *sorted(BACKENDS)])
        raise AttentionBackendError(f"model.attention is {name!r}, and no backend has that name. Use one of: {known}.")
    return BACKENDS[name]


def _bias(visible_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    # Additive and not boolean: torch would turn a boolean mask into this very tensor again in every layer.
    bias_BTS = torch.zeros(visible_BTS.shape, dtype=dtype, device=visible_BTS.device)
    return bias_BTS.masked_fill_(~visible_BTS, float("-inf"))[:, None]
