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

from llm.dropout import Dropout, drop
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


class Visibility(NamedTuple):
    """Which keys each query sees: what a backend makes its mask of, once a forward pass and window."""

    query_length: int
    """T; the queries are the last T of the S key positions."""
    key_length: int
    """S, at least T."""
    document_ids_BS: Tensor | None  # noqa: N815
    """Equal integers for tokens of one document; a query sees keys of its own document alone."""
    window: int | None
    """A query at position i sees keys j with i - window < j <= i; None means all before."""
    dtype: torch.dtype
    """Of the queries."""
    device: torch.device


class ScoreRule(NamedTuple):
    """How scores become weights."""

    scale: float
    """Scores are scale * q.k."""
    softcap: float | None
    """Then softcap * tanh(scores / softcap)."""
    dropout: Dropout | None
    """Which of the weights are set to zero; None outside training."""


Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask, ScoreRule], Tensor]
"""attend(q_BTHK, k_BSGK, v_BSGK, mask, scores) -> BTHK in the dtype of q."""


class Backend(NamedTuple):
    """One way to compute attention."""

    name: str
    prepare: Callable[[Visibility], AttentionMask]
    attend: Attend


class AttentionNeeds(NamedTuple):
    """What a backend has to serve."""

    device: str
    softcap: bool = False
    window: bool = False
    documents: bool = False
    dropout: bool = False
    head_size: int = 64
    training: bool = True


class ResolvedAttention(NamedTuple):
    """The backend that will run, and why."""

    name: str
    reason: str


def bias_mask(visible: Visibility) -> AttentionMask:
    """Plain causal where it can be, else a bias."""
    T, S = visible.query_length, visible.key_length
    window = None if visible.window is None or visible.window >= S else visible.window
    if visible.document_ids_BS is None and window is None:
        if T == S:
            return AttentionMask(is_causal=True, bias=None)
        if T == 1:
            return AttentionMask(is_causal=False, bias=None)
    keys_S = torch.arange(S, device=visible.device)
    behind_TS = keys_S[S - T :, None] - keys_S
    visible_BTS = (behind_TS >= 0)[None]
    if window is not None:
        visible_BTS = visible_BTS & (behind_TS < window)
    if visible.document_ids_BS is not None:
        documents_BS = visible.document_ids_BS
        visible_BTS = visible_BTS & (documents_BS[:, S - T :, None] == documents_BS[:, None, :])
    return AttentionMask(is_causal=False, bias=_bias(visible_BTS, visible.dtype))


def eager_attention(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, scores: ScoreRule) -> Tensor:
    """The obvious attention, in fp32: scores, mask, softmax, weighted mean (arXiv:1706.03762, eq. 1).

    Query head h reads key/value head h // R, as in grouped-query attention (arXiv:2305.13245).
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if mask.is_causal:
        hidden_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTHK.device).triu(diagonal=1)
        mask = AttentionMask(is_causal=False, bias=_bias(~hidden_TS[None], torch.float32))
    q_BTGRK = q_BTHK.float().reshape(B, T, G, H // G, K)
    scores_BGRTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK.float()) * scores.scale
    if scores.softcap is not None:
        scores_BGRTS = scores.softcap * (scores_BGRTS / scores.softcap).tanh()
    if mask.bias is not None:
        scores_BGRTS = scores_BGRTS + mask.bias[:, :, None].float()
    weights_BGRTS = scores_BGRTS.softmax(dim=-1)
    if scores.dropout is not None:
        weights_BGRTS = drop(weights_BGRTS, scores.dropout)
    mixed_BTGRK = torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK.float())
    return mixed_BTGRK.reshape(B, T, H, K).to(q_BTHK.dtype)


def sdpa_attention(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: AttentionMask, scores: ScoreRule) -> Tensor:
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
        scale=scores.scale,
        enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
    )
    return mixed_BHTK.transpose(1, 2)


BACKENDS = {"eager": Backend("eager", bias_mask, eager_attention), "sdpa": Backend("sdpa", bias_mask, sdpa_attention)}


def resolve_attention(name: str, needs: AttentionNeeds) -> ResolvedAttention:
    """Turn a configured name into the backend that will run, with the reason for the log."""
    if name == "auto":
        if needs.softcap:
            return ResolvedAttention("eager", "auto: scores are capped, which torch's fused kernels do not do")
        return ResolvedAttention("sdpa", "auto: torch's fused kernels run on every device and need no extra package")
    attention_backend(name)
    return ResolvedAttention(name, "asked for by name")


def attention_backend(name: str) -> Backend:
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
